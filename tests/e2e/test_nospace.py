"""The way into NOSPACE and out of it again, step by step as etcd goes it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.harness import Client, Server, pb, reference_server, target_name, target_server

from .etcdctl import etcdctl

QUOTA_BYTES = 8 * 1024 * 1024
VALUE = bytes(100_000)
PUTS_MAX = 2000
KEYS = 40  # few keys, many versions: most of the space is history, which compaction gives back

# From 3.6 a txn that costs no space passes the quota, as a plain read or delete always did
# (etcd server/storage/quota.go, Available).
FREE_SINCE_3_6 = ("read in txn", "delete in txn")

Step = tuple[str, object]


def _outcome(client: Client, method: str, request: object) -> tuple[int, str]:
    reply = client.call(method, request)
    return reply.code, reply.text


def _fill(client: Client) -> tuple[int, str]:
    """Put until refused; the refusal."""
    for number in range(PUTS_MAX):
        reply = client.call("Put", pb.PutRequest(key=b"fill/%d" % (number % KEYS), value=VALUE))
        if not reply.ok:
            return reply.code, reply.text
    raise AssertionError(f"{PUTS_MAX} puts of {len(VALUE)} bytes and the quota of {QUOTA_BYTES} not reached")


def _ctl(server: Server, *arguments: str) -> tuple[int, bytes, bytes]:
    result = etcdctl(server.endpoint, *arguments)
    mask = server.endpoint.encode()
    return result.code, result.stdout.replace(mask, b"ENDPOINT"), result.stderr.replace(mask, b"ENDPOINT")


def _story(server: Server) -> list[Step]:
    steps: list[Step] = []
    put = pb.PutRequest(key=b"small", value=b"v")
    put_in_txn = pb.TxnRequest()
    put_in_txn.success.add().request_put.CopyFrom(put)
    read_in_txn = pb.TxnRequest()
    read_in_txn.success.add().request_range.key = b"fill/0"
    delete_in_txn = pb.TxnRequest()
    delete_in_txn.success.add().request_delete_range.key = b"fill/1"
    not_taken = pb.TxnRequest()
    not_taken.compare.add(key=b"nothing", target=pb.Compare.VERSION, version=5)
    not_taken.success.add().request_put.CopyFrom(put)
    server.start()
    with server.client() as client:
        steps.append(("first put", _outcome(client, "Put", put)))
        steps.append(("no alarm", _ctl(server, "alarm", "list")))
        steps.append(("fill", _fill(client)))
        steps.append(("alarm listed", _ctl(server, "alarm", "list")))
        steps.append(("status shows it", list(client.call("Status", pb.StatusRequest()).message.errors)))
        steps.append(("health", _ctl(server, "endpoint", "health")))
        steps.append(("small put", _outcome(client, "Put", put)))
        steps.append(("put in txn", _outcome(client, "Txn", put_in_txn)))
        steps.append(("put in a branch not taken", _outcome(client, "Txn", not_taken)))
        steps.append(("read", _outcome(client, "Range", pb.RangeRequest(key=b"fill/0", keys_only=True))))
        steps.append(("read in txn", _outcome(client, "Txn", read_in_txn)))
        steps.append(("delete", _outcome(client, "DeleteRange", pb.DeleteRangeRequest(key=b"fill/0"))))
        steps.append(("delete in txn", _outcome(client, "Txn", delete_in_txn)))
        revision = client.get(b"x").header.revision
        compact = pb.CompactionRequest(revision=revision, physical=True)
        steps.append(("compact", _outcome(client, "Compact", compact)))
        steps.append(("defrag", _ctl(server, "defrag")))
        steps.append(("alarm stays", _ctl(server, "alarm", "list")))
        steps.append(("put before disarm", _outcome(client, "Put", put)))
    server.stop()
    server.start()
    with server.client() as client:
        steps.append(("alarm after restart", _ctl(server, "alarm", "list")))
        steps.append(("put after restart", _outcome(client, "Put", put)))
        steps.append(("disarm", _ctl(server, "alarm", "disarm")))
        steps.append(("alarm gone", _ctl(server, "alarm", "list")))
        steps.append(("put again", _outcome(client, "Put", put)))
        steps.append(("txn again", _outcome(client, "Txn", put_in_txn)))
        steps.append(("status is clean", list(client.call("Status", pb.StatusRequest()).message.errors)))
    return steps


def test_nospace_goes_as_in_etcd() -> None:
    flags = ["--quota-backend-bytes", str(QUOTA_BYTES)]
    servers = [reference_server(flags=flags), target_server(flags=flags)]
    try:
        with ThreadPoolExecutor(2) as pool:
            left, right = pool.map(_story, servers)
    finally:
        for server in servers:
            server.close()
    story = dict(left)
    assert story["fill"] == (8, "etcdserver: mvcc: database space exceeded")
    assert story["put again"] == (0, "")
    for (step, one), (_, other) in zip(left, right, strict=True):
        if step in FREE_SINCE_3_6 and target_name() != "etcd":
            assert (one, other) == (story["fill"], (0, "")), step
        else:
            assert other == one, step
