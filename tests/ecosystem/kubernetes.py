"""What an API server of Kubernetes asks of etcd, in the shapes in which it asks (anchors.md 6b): a small store of
objects with its cache, its compactor and its leases for events.

Every call is recorded with its answer, so that two servers can be compared call by call.
"""

from __future__ import annotations

from typing import Any

from tests.harness import pb
from tests.harness.rpc import Client
from tests.harness.watch import Watch, WatchStream

PREFIX = b"/registry/"
COMPACT_KEY = b"compact_rev_key"
PAGE = 50
EVENT_TTL_SECONDS = 3600


def end_of(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Conflict(Exception):
    """The object has changed since it was read; carries what is there now (None: nothing)."""

    def __init__(self, current: Any) -> None:
        super().__init__()
        self.current = current


class ApiServer:
    """The storage layer of one API server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.record: list[tuple[str, str, int, str, bytes]] = []  # method, request, code, text, answer
        self._lease = 0
        self._lease_uses = 0

    def _call(self, method: str, request: Any) -> Any:
        reply = self.client.call(method, request)
        answer = b""
        if reply.ok:
            message = reply.message
            message.header.raft_term = 0
            answer = message.SerializeToString(deterministic=True)
        self.record.append((method, str(request), reply.code, reply.text, answer))
        return reply

    def _txn(self, key: bytes, mod_revision: int, operation: pb.RequestOp) -> Any:
        """The one form of transaction there is: one comparison of ModRevision, one write, else one read."""
        compare = pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=mod_revision)
        read = pb.RequestOp(request_range=pb.RangeRequest(key=key, limit=1))
        answer = self._call("Txn", pb.TxnRequest(compare=[compare], success=[operation], failure=[read])).message
        if not answer.succeeded:
            found = answer.responses[0].response_range.kvs
            raise Conflict(found[0] if found else None)
        return answer

    def create(self, key: bytes, value: bytes, lease: int = 0) -> int:
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
        return self._txn(key, 0, put).header.revision

    def get(self, key: bytes) -> Any:
        found = self._call("Range", pb.RangeRequest(key=key, limit=1)).message.kvs
        return found[0] if found else None

    def read_at(self, key: bytes, revision: int) -> Any:
        """The reply for an old revision, which may be compacted."""
        return self._call("Range", pb.RangeRequest(key=key, limit=1, revision=revision))

    def update(self, key: bytes, change: Any) -> int:
        """GuaranteedUpdate: on the state as remembered, again on the state that the conflict brought."""
        current = self.get(key)
        while True:
            put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=change(current.value)))
            try:
                return self._txn(key, current.mod_revision, put).header.revision
            except Conflict as conflict:
                current = conflict.current

    def delete(self, key: bytes, mod_revision: int) -> int:
        gone = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        return self._txn(key, mod_revision, gone).header.revision

    def count(self, prefix: bytes) -> int:
        request = pb.RangeRequest(key=prefix, range_end=end_of(prefix), count_only=True)
        return self._call("Range", request).message.count

    def list_pages(self, prefix: bytes, limit: int = PAGE, keys_only: bool = False) -> tuple[list[Any], int]:
        """All objects in pages that show one revision; (objects, revision)."""
        found: list[Any] = []
        key, revision = prefix, 0
        while True:
            request = pb.RangeRequest(
                key=key, range_end=end_of(prefix), limit=limit, revision=revision, keys_only=keys_only
            )
            answer = self._call("Range", request).message
            found += answer.kvs
            revision = revision or answer.header.revision
            if not answer.more:
                return found, revision
            key = answer.kvs[-1].key + b"\x00"

    def current_revision(self, prefix: bytes) -> int:
        """What the cache asks to know whether it is up to date."""
        request = pb.RangeRequest(key=prefix, range_end=end_of(prefix), limit=1)
        return self._call("Range", request).message.header.revision

    def watch(self, stream: WatchStream, prefix: bytes, after_revision: int) -> Watch:
        return stream.open(
            prefix, end_of(prefix), start_revision=after_revision + 1, prev_kv=True, progress_notify=True
        )

    def event(self, name: bytes, value: bytes) -> int:
        """Events share a lease for up to a thousand of them."""
        if self._lease_uses % 1000 == 0:
            request = pb.LeaseGrantRequest(TTL=EVENT_TTL_SECONDS, ID=7000 + self._lease_uses)
            self._lease = self._call("LeaseGrant", request).message.ID
        self._lease_uses += 1
        return self.create(PREFIX + b"events/" + name, value, self._lease)

    def compact(self, known_time: int, revision: int) -> tuple[int, int]:
        """One round of the compactors of several API servers, which agree through a key's version.

        Returns what to pass the next time: (version of the key, revision now)."""
        compare = pb.Compare(target=pb.Compare.VERSION, result=pb.Compare.EQUAL, key=COMPACT_KEY, version=known_time)
        put = pb.RequestOp(request_put=pb.PutRequest(key=COMPACT_KEY, value=b"%d" % revision))
        read = pb.RequestOp(request_range=pb.RangeRequest(key=COMPACT_KEY))
        answer = self._call("Txn", pb.TxnRequest(compare=[compare], success=[put], failure=[read])).message
        if not answer.succeeded:
            return answer.responses[0].response_range.kvs[0].version, answer.header.revision
        if revision:
            self._call("Compact", pb.CompactionRequest(revision=revision))
        return known_time + 1, answer.header.revision
