"""What clients did to a server and what they were told: the ground truth of a crash test."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.harness import pb

# None as value: the key is deleted.
Effect = tuple[bytes, bytes | None]


@dataclass(slots=True)
class Operation:
    """One write as it was sent. `revision` is what the answer said; None: no answer came."""

    method: str
    request: bytes
    effects: tuple[Effect, ...]
    revision: int | None = None

    @property
    def is_delete_only(self) -> bool:
        return all(value is None for _, value in self.effects)


def put(key: bytes, value: bytes) -> Operation:
    request = pb.PutRequest(key=key, value=value)
    return Operation("Put", request.SerializeToString(), ((key, value),))


def delete(key: bytes) -> Operation:
    """Of a key that exists and that nobody else touches."""
    return Operation("DeleteRange", pb.DeleteRangeRequest(key=key).SerializeToString(), ((key, None),))


def txn(fresh: bytes, effects: tuple[Effect, ...], *, by_failure: bool) -> Operation:
    """All effects in one revision, in the branch asked for; `fresh` is a key nobody ever wrote."""
    request = pb.TxnRequest()
    version = 5 if by_failure else 0
    request.compare.add(key=fresh, target=pb.Compare.VERSION, result=pb.Compare.EQUAL, version=version)
    taken, other = (request.failure, request.success) if by_failure else (request.success, request.failure)
    for key, value in effects:
        if value is None:
            taken.add().request_delete_range.key = key
        else:
            taken.add().request_put.CopyFrom(pb.PutRequest(key=key, value=value))
    other.add().request_put.CopyFrom(pb.PutRequest(key=b"never/" + fresh, value=b"wrong branch"))
    return Operation("Txn", request.SerializeToString(), effects)


@dataclass(slots=True)
class Model:
    """The store as it must be after all operations found so far, in revision order."""

    # key -> (value, create_revision, mod_revision, version)
    live: dict[bytes, tuple[bytes, int, int, int]] = field(default_factory=dict)
    current: int = 1

    def apply(self, operation: Operation, revision: int) -> None:
        if revision != self.current + 1:
            raise AssertionError(f"revision {revision} follows {self.current}")
        self.current = revision
        for key, value in operation.effects:
            if value is None:
                del self.live[key]
            else:
                _, created, _, version = self.live.get(key, (b"", revision, 0, 0))
                self.live[key] = (value, created, revision, version + 1)
