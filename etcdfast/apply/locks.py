"""The Lock service: the first in line of the keys `name/<lease in hex>` holds the lock.

The proposals are etcd's own, so that calls of this service, of etcd's service and of client libraries wait in
one line. Three things are better here: a waiter whose own key vanishes fails at once (etcd's learns it when
its turn comes), a call that ends while its key is on the way into the log takes the key out again, and a
key made anew under the same lease is never taken for one's own.

Source: etcd's client/v3/concurrency/mutex and v3lock; seen live on 3.5.1.
"""

from etcdfast.api import rpcs
from etcdfast.apply.services import Gone, Refused, propose, read_index
from etcdfast.apply.waitlines import (
    DELETE_RANGE,
    TXN,
    compare_created,
    give_up,
    grant_lease,
    kv_messages,
    need_key,
    parsed,
    still_ours,
    wait_for_turn,
    waiter_key,
)

LOCK = rpcs.BY_PATH["/v3lockpb.Lock/Lock"].id
EXPIRED = "mutex: session is expired"


def lock(services, call, payload):
    request = parsed(_pb().LockRequest, payload)
    lease = request.lease or (yield from grant_lease())
    prefix = request.name + b"/"
    key = waiter_key(prefix, lease)
    del request, payload  # a long wait keeps no more than it needs
    answer = kv_messages().TxnResponse.FromString((yield from propose(TXN, acquire_request(prefix, key, lease))))
    ours = answer.succeeded
    revision = answer.header.revision
    if not ours:
        revision = answer.responses[0].response_range.kvs[0].create_revision
    owner = answer.responses[1].response_range.kvs
    is_first = not owner or owner[0].create_revision == revision
    out = _pb().LockResponse(key=key, header=answer.header)
    del answer, owner
    try:
        call.check()
        if is_first:
            if not still_ours(services.space, key, revision):
                raise Refused(EXPIRED)  # in the very turn that made it
        else:
            ours = True
            if not (yield from wait_for_turn(services.space, prefix, key, revision)):
                raise Refused(EXPIRED)
            call.check()
            yield from _confirm(services, key, revision)
            call.check()
            services.header(out.header)
    except Gone:
        if ours:
            yield from give_up(services.space, key, revision, DELETE_RANGE, delete_request(key))
        raise
    return 0, out.SerializeToString(), ""


def _confirm(services, key, revision):
    """A follower may learn late that a lease has ended: the lock is held if the key is there now, not here."""
    try:
        yield from read_index(LOCK)
    except Refused:
        yield from give_up(services.space, key, revision, DELETE_RANGE, delete_request(key))
        raise
    if not still_ours(services.space, key, revision):
        raise Refused(EXPIRED)


def unlock(services, call, payload):
    key = parsed(_pb().UnlockRequest, payload).key
    need_key(key)
    answer = kv_messages().DeleteRangeResponse.FromString((yield from propose(DELETE_RANGE, delete_request(key))))
    return 0, _pb().UnlockResponse(header=answer.header).SerializeToString(), ""


HANDLERS = {
    LOCK: lock,
    rpcs.BY_PATH["/v3lockpb.Lock/Unlock"].id: unlock,
}


def acquire_request(prefix, key, lease):
    """Take a place in the line, unless there already; look who is first."""
    request = kv_messages().TxnRequest()
    compare_created(request, key, 0)
    put = request.success.add().request_put
    put.key = key
    put.lease = lease
    _first_created(request.success.add().request_range, prefix)
    request.failure.add().request_range.key = key
    _first_created(request.failure.add().request_range, prefix)
    return request.SerializeToString()


def delete_request(key):
    return kv_messages().DeleteRangeRequest(key=key).SerializeToString()


def _first_created(out, prefix):
    out.key = prefix
    out.range_end = prefix[:-1] + b"0"  # the byte behind the slash that ends the prefix
    out.limit = 1
    out.sort_order = out.ASCEND
    out.sort_target = out.CREATE


def _pb():
    from etcdfast.api.pb import v3lock_pb2

    return v3lock_pb2
