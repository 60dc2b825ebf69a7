"""The Election service: the first in line leads, and the value of its key is what it proclaims.

The proposals are etcd's own, also where a call brings no lease: etcd then grants one, even to resign. As in
locks.py a campaign whose key vanishes fails at once; etcd's would be told that it has won, with a key that
is no more.

Source: etcd's client/v3/concurrency/election and v3election; seen live on 3.5.1.
"""

from etcdfast.api import rpcs
from etcdfast.apply.services import Gone, Pause, Proposal, ReadIndex, Refused, Wait, propose, read_index
from etcdfast.apply.waitlines import (
    TXN,
    compare_created,
    give_up,
    grant_lease,
    kv_messages,
    need_key,
    need_line,
    parsed,
    wait_for_turn,
    waiter_key,
)

LEADER, OBSERVE = (rpcs.BY_PATH[f"/v3electionpb.Election/{name}"].id for name in ("Leader", "Observe"))
OBSERVE_RETRY_NS = 250_000_000
NOT_LEADER = "election: not leader"
NO_LEADER = "election: no leader"
EXPIRED = "election: session is expired"
NO_LEADER_KEY = '"leader" field must be provided'


def campaign(services, call, payload):
    request = parsed(_pb().CampaignRequest, payload)
    lease = request.lease or (yield from grant_lease())
    name, value = request.name, request.value
    prefix = name + b"/"
    key = waiter_key(prefix, lease)
    answer = kv_messages().TxnResponse.FromString((yield from propose(TXN, campaign_request(key, value, lease))))
    out = _pb().CampaignResponse(header=answer.header)
    leader = out.leader
    leader.name, leader.key, leader.lease, leader.rev = name, key, lease, answer.header.revision
    ours = answer.succeeded
    try:
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs[0]
            leader.rev = found.create_revision
            call.check()
            if found.value != value:
                yield from _proclaim_here(leader, value)
        del request, value, answer  # a long wait keeps no more than it needs
        call.check()
        ours = True
        if not (yield from wait_for_turn(services.space, prefix, key, leader.rev)):
            raise Refused(EXPIRED)
        call.check()
    except Gone:
        if ours:
            yield from give_up(services.space, key, leader.rev, TXN, resign_request(key, leader.rev))
        raise
    return 0, out.SerializeToString(), ""


def proclaim(services, call, payload):
    request = parsed(_pb().ProclaimRequest, payload)
    lease = yield from _session(request)
    key, revision = request.leader.key, request.leader.rev
    answer = yield from _leader_txn(key, proclaim_request(key, revision, request.value, lease))
    if not answer.succeeded:
        raise Refused(NOT_LEADER)
    return 0, _pb().ProclaimResponse(header=answer.header).SerializeToString(), ""


def resign(services, call, payload):
    request = parsed(_pb().ResignRequest, payload)
    yield from _session(request)
    key, revision = request.leader.key, request.leader.rev
    answer = yield from _leader_txn(key, resign_request(key, revision))
    # Who led no more has resigned as well.
    return 0, _pb().ResignResponse(header=answer.header).SerializeToString(), ""


def leader(services, call, payload):
    request = parsed(_pb().LeaderRequest, payload)
    yield from read_index(LEADER)
    need_line(services, call, request.name + b"/")
    record = services.space.first_created(request.name + b"/")
    if record is None:
        raise Refused(NO_LEADER)
    return 0, leader_message(services, record), ""


def observe(services, call, payload):
    """Every proclamation of the leader, and then of its successors.

    A client that reads too slowly misses some and gets the newest, as etcd promises no more than that.
    """
    prefix = parsed(_pb().LeaderRequest, payload, stream=True).name + b"/"
    space = services.space
    while True:
        while not call.may_send:
            yield Wait(credit=True)
        # A stream without end waits for a leader as long as its client does.
        while (yield ReadIndex(OBSERVE))[0]:
            yield Pause(OBSERVE_RETRY_NS)
            call.check()
        need_line(services, call, prefix)
        record, changes = space.first_created(prefix), ()
        seen = space.current_revision
        if record is None:
            record, changes = yield from _first_put(space, prefix)
            if record is None or not call.may_send:
                continue
            seen = 0
        kv = _record(record)
        call.send(leader_message(services, record, seen or kv.mod_revision))
        yield from _follow(services, call, kv.key, kv.create_revision, seen or kv.mod_revision, changes)


HANDLERS = {
    rpcs.BY_PATH[f"/v3electionpb.Election/{handler.__name__.capitalize()}"].id: handler
    for handler in (campaign, proclaim, resign, leader, observe)
}


def _first_put(space, prefix):
    """Wait for the first key below `prefix`: (record, what else happened meanwhile), or (None, None)."""
    while True:
        changes = yield Wait(prefix=prefix)
        for at, change in enumerate(changes):
            if not change.deleted:
                state = space.get(change.key, change.main)
                return (state[3], changes[at + 1 :]) if state else (None, None)


def _follow(services, call, key, created, seen, changes):
    """Send what is put to the leader's key behind revision `seen`, until the key is deleted."""
    space = services.space
    behind = False
    while True:
        for change in changes:
            if change.key != key or change.main <= seen:
                continue
            if change.deleted:
                return
            behind = behind or not call.may_send
            if not behind:
                state = space.get(key, change.main)
                if state is None or state[0] != created:
                    return  # compacted already, or another's: look anew
                call.send(leader_message(services, state[3], change.main))
            seen = change.main
        if behind and call.may_send:
            state = space.get(key)
            if state is None or state[0] != created:
                return
            call.send(leader_message(services, state[3], state[1]))
            seen, behind = state[1], False
        changes = yield Wait((key,), credit=behind)


def _session(request):
    """The lease of a request that names a leader key."""
    if not request.HasField("leader"):
        raise Refused(NO_LEADER_KEY)
    return request.leader.lease or (yield from grant_lease())


def _leader_txn(key, request):
    need_key(key)
    return kv_messages().TxnResponse.FromString((yield from propose(TXN, request)))


def _proclaim_here(leader, value):
    """Our key is there already with another value: proclaim ours before waiting, or give the key up."""
    try:
        answer = yield from propose(TXN, proclaim_request(leader.key, leader.rev, value, leader.lease))
    except Refused:
        yield Proposal(TXN, resign_request(leader.key, leader.rev), True)
        raise
    if not kv_messages().TxnResponse.FromString(answer).succeeded:
        raise Refused(NOT_LEADER)


def campaign_request(key, value, lease):
    request = kv_messages().TxnRequest()
    compare_created(request, key, 0)
    _put(request, key, value, lease)
    request.failure.add().request_range.key = key
    return request.SerializeToString()


def proclaim_request(key, revision, value, lease):
    request = kv_messages().TxnRequest()
    compare_created(request, key, revision)
    _put(request, key, value, lease)
    return request.SerializeToString()


def resign_request(key, revision):
    request = kv_messages().TxnRequest()
    compare_created(request, key, revision)
    request.success.add().request_delete_range.key = key
    return request.SerializeToString()


def _put(request, key, value, lease):
    put = request.success.add().request_put
    put.key, put.value, put.lease = key, value, lease


def leader_message(services, record, revision=0):
    """A LeaderResponse as bytes."""
    out = _pb().LeaderResponse()
    services.header(out.header, revision)
    out.kv.ParseFromString(record)
    return out.SerializeToString()


def _record(record):
    from etcdfast.api.pb import kv_pb2

    return kv_pb2.KeyValue.FromString(record)


def _pb():
    from etcdfast.api.pb import v3election_pb2

    return v3election_pb2
