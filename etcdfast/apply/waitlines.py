"""What locks and elections are made of: keys `name/<lease in hex>`, waiting in a line by create revision.

Source: etcd's client/v3/concurrency (key, session).
"""

from etcdfast.api import errors, rpcs
from etcdfast.apply.services import Pause, Proposal, Refused, Wait, propose

SESSION_TTL_SECONDS = 60  # of the lease granted to who brings none; nobody renews it
GIVE_UP_RETRY_NS = 250_000_000
GIVE_UP_ATTEMPTS = 40

TXN = rpcs.BY_PATH["/etcdserverpb.KV/Txn"].id
DELETE_RANGE = rpcs.BY_PATH["/etcdserverpb.KV/DeleteRange"].id
LEASE_GRANT = rpcs.BY_PATH["/etcdserverpb.Lease/LeaseGrant"].id

# Refusals after which the same proposal may be made again.
_AGAIN = {
    errors.ID[symbol]
    for symbol in ("NO_LEADER", "NOT_LEADER", "LEADER_CHANGED", "TOO_MANY_REQUESTS", "TIMEOUT", "TIMEOUT_LEADER_FAIL")
}
_MALFORMED = "proto: cannot parse invalid wire-format data"


def parsed(message_class, payload, stream=False):
    """A request; the frontend looked at its outermost fields only. Errors: Refused."""
    from google.protobuf.message import DecodeError

    try:
        return message_class.FromString(payload)
    except DecodeError:
        where = "failed to unmarshal the received message" if stream else "error unmarshalling request"
        raise Refused(f"grpc: {where}: {_MALFORMED}", "INTERNAL") from None


def need_key(key):
    """Errors: Refused."""
    if not key:
        raise Refused(errors.ERRORS[errors.ID["EMPTY_KEY"]].text)


def grant_lease():
    """The id of a new lease that nobody will renew."""
    request = kv_messages().LeaseGrantRequest(TTL=SESSION_TTL_SECONDS).SerializeToString()
    answer = yield from propose(LEASE_GRANT, request)
    return kv_messages().LeaseGrantResponse.FromString(answer).ID


def need_line(services, call, prefix):
    """The caller may read what lies below `prefix`, which ends in a slash. Errors: Refused."""
    services.need_read(call, prefix, prefix[:-1] + b"0")


def waiter_key(prefix, lease):
    return prefix + f"{lease:x}".encode()


def compare_created(request, key, revision):
    """Add to a TxnRequest: only if `key` was created at `revision`, 0 for a key that is not there."""
    compare = request.compare.add()
    compare.target = compare.CREATE
    compare.key = key
    compare.create_revision = revision


def still_ours(space, key, revision):
    """Whether `key` is the one that was created at `revision`."""
    state = space.get(key)
    return state is not None and state[0] == revision


def wait_for_turn(space, prefix, key, revision):
    """Wait until no key below `prefix` is older than ours. False when ours has vanished. Errors: Gone."""
    while True:
        if not still_ours(space, key, revision):
            return False
        ahead = space.last_created(prefix, revision - 1)
        if ahead is None:
            return True
        # Only the next in front: the end of one holder wakes one waiter, not all of them.
        yield Wait((key, ahead))


def give_up(space, key, revision, method, request):
    """Take our key out of the line, for nobody; what fails for good ends with its lease."""
    for _ in range(GIVE_UP_ATTEMPTS):
        if not still_ours(space, key, revision):
            return
        status, _ = yield Proposal(method, request, True)
        if status not in _AGAIN:
            return
        yield Pause(GIVE_UP_RETRY_NS)


def kv_messages():
    # Loaded on first use: start-up of a large member does not wait for the protobuf runtime.
    from etcdfast.api.pb import rpc_pb2

    return rpc_pb2
