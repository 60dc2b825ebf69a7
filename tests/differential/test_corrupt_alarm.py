"""What a member under the CORRUPT alarm still does, against real etcd: reads go on, the log's requests do not."""

from __future__ import annotations

from tests.harness import Client, Server, pb, reference_server, target_server

CORRUPT = 2  # AlarmType


def _outcome(client: Client, method: str, request: object) -> tuple[int, str]:
    reply = client.call(method, request)
    return reply.code, reply.text


def _story(server: Server) -> list[tuple[str, object]]:
    put = pb.PutRequest(key=b"k", value=b"v")
    write = pb.TxnRequest()
    write.success.add().request_put.CopyFrom(put)
    read = pb.TxnRequest()
    read.success.add().request_range.key = b"k"
    nested = pb.TxnRequest()
    nested.success.add().request_txn.CopyFrom(read)
    steps = []
    with server.client() as client:
        client.call("Put", put)
        member = client.call("Status", pb.StatusRequest()).message.header.member_id
        raised = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=CORRUPT)
        steps.append(("raise", _outcome(client, "Alarm", raised)))
        for name, method, request in (
            ("put", "Put", put),
            ("delete", "DeleteRange", pb.DeleteRangeRequest(key=b"k")),
            ("range", "Range", pb.RangeRequest(key=b"k")),
            ("serializable range", "Range", pb.RangeRequest(key=b"k", serializable=True)),
            ("write in txn", "Txn", write),
            ("read in txn", "Txn", read),
            ("read in nested txn", "Txn", nested),
            ("compaction", "Compact", pb.CompactionRequest(revision=2)),
            ("hash", "HashKV", pb.HashKVRequest()),
            ("members", "MemberList", pb.MemberListRequest()),
        ):
            steps.append((name, _outcome(client, method, request)))
        lowered = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=member, alarm=CORRUPT)
        steps.append(("lower", _outcome(client, "Alarm", lowered)))
        steps.append(("put again", _outcome(client, "Put", put)))
    return steps


def test_a_corrupt_member_refuses_what_etcd_refuses() -> None:
    with reference_server() as etcd, target_server() as target:
        assert _story(target) == _story(etcd)
