"""After a restart: is everything there that was answered, and nothing that was never sent?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.harness import Client, pb

from .history import Model, Operation

PIPELINE = 256  # reads in flight while checking


class Broken(AssertionError):
    """A guarantee did not hold over a crash."""


@dataclass(slots=True)
class Checker:
    """Follows one data directory over many crashes.

    `model` is the store after everything found so far. A mirror, when given, is a real etcd that
    receives the found history in revision order; its HashKV must equal the target's.
    """

    mirror: Client | None = None
    model: Model = field(default_factory=Model)
    compacted: int = -1
    # Writes nobody waits for any more may still arrive: a member of a cluster held them back.
    late: bool = False

    def after_restart(self, client: Client, answered: list[Operation], unanswered: list[Operation]) -> list[Operation]:
        """Check one round; returns the unanswered operations that turned out to be there.

        Errors: Broken, saying which guarantee.
        """
        header = client.get(b"\x00").header
        first, current = self.model.current + 1, header.revision
        by_revision: dict[int, Operation] = {}
        for operation in answered:
            revision = operation.revision
            assert revision is not None
            if revision in by_revision:
                raise Broken(f"two writes were answered with revision {revision}")
            if not first <= revision <= current:
                raise Broken(f"answered revision {revision} outside {first}..{current}: an acknowledged write is lost")
            by_revision[revision] = operation
        found = self._place_unanswered(client, unanswered, by_revision, range(first, current + 1))
        self._check_each(client, by_revision)
        for revision in range(first, current + 1):
            self.model.apply(by_revision[revision], revision)
        self._check_sizes(client)
        self._replay(client, [by_revision[revision] for revision in range(first, current + 1)])
        return found

    def _place_unanswered(
        self,
        client: Client,
        unanswered: list[Operation],
        by_revision: dict[int, Operation],
        revisions: Iterable[int],
    ) -> list[Operation]:
        """Every revision no answer names must be exactly one unanswered operation, whole."""
        open_ones = list(unanswered)
        found = []
        for revision in revisions:
            if revision in by_revision:
                continue
            written = client.get(
                b"\x00", b"\x00", revision=revision, min_mod_revision=revision, max_mod_revision=revision
            ).kvs
            puts = {kv.key: kv.value for kv in written}
            match = next((o for o in open_ones if self._is(client, o, puts, revision)), None)
            if match is None:
                raise Broken(
                    f"revision {revision} holds {_short(puts)}, which is no unanswered operation as a whole: "
                    "half a transaction, a gap, or a write nobody sent"
                )
            open_ones.remove(match)
            by_revision[revision] = match
            found.append(match)
        return found

    @staticmethod
    def _is(client: Client, operation: Operation, puts: dict[bytes, bytes], revision: int) -> bool:
        if {key: value for key, value in operation.effects if value is not None} != puts:
            return False
        deleted = [key for key, value in operation.effects if value is None]
        return all(
            client.get(key, revision=revision - 1).count == 1 and client.get(key, revision=revision).count == 0
            for key in deleted
        )

    @staticmethod
    def _check_each(client: Client, by_revision: dict[int, Operation]) -> None:
        """Each effect of each operation, read at its own revision."""
        reads = [
            (revision, key, value) for revision, operation in by_revision.items() for key, value in operation.effects
        ]
        for start in range(0, len(reads), PIPELINE):
            part = reads[start : start + PIPELINE]
            pending = [client.start("Range", pb.RangeRequest(key=key, revision=revision)) for revision, key, _ in part]
            for (revision, key, value), one in zip(part, pending):
                kvs = one.reply().message.kvs
                if value is None:
                    if kvs:
                        raise Broken(f"{key!r} was deleted at revision {revision} and is there")
                elif not kvs or (kvs[0].value, kvs[0].mod_revision) != (value, revision):
                    raise Broken(f"{key!r} was written at revision {revision}; found {_short(list(kvs))}")

    def _check_sizes(self, client: Client) -> None:
        at = self.model.current if self.late else 0
        answer = client.get(b"\x00", b"\x00", count_only=True, revision=at)
        if (answer.header.revision != self.model.current and not self.late) or answer.count != len(self.model.live):
            raise Broken(
                f"{answer.count} keys at revision {answer.header.revision}, "
                f"but {len(self.model.live)} at {self.model.current} by the answers"
            )

    def check_contents(self, client: Client) -> None:
        """Every live key with value and revisions; costs a read of the whole store."""
        answer = client.get(b"\x00", b"\x00")
        found = {kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in answer.kvs}
        if found != self.model.live:
            wrong = [key for key in found.keys() | self.model.live.keys() if found.get(key) != self.model.live.get(key)]
            raise Broken(f"{len(wrong)} keys differ, first {sorted(wrong)[:3]!r}")

    def _replay(self, client: Client, operations: list[Operation]) -> None:
        """The same history into a real etcd must give the same hash."""
        if self.mirror is None:
            return
        for operation in operations:
            self.mirror.call(operation.method, operation.request).message  # noqa: B018 - raises if refused
        ours = client.hashkv()
        if ours.compact_revision != self.compacted:
            # A compaction without an answer may have happened; it may not undo itself later.
            if ours.compact_revision < self.compacted:
                raise Broken(f"compacted {self.compacted} before the crash, {ours.compact_revision} after it")
            self.compacted = ours.compact_revision
            self.mirror.compact(self.compacted, physical=True)
        theirs = self.mirror.hashkv()
        for name in ("hash", "compact_revision"):
            one, other = getattr(ours, name), getattr(theirs, name)
            if one != other:
                raise Broken(f"HashKV {name}: {one}, real etcd with the same history {other}")
        if ours.header.revision != theirs.header.revision:
            raise Broken(f"revision {ours.header.revision}, real etcd has {theirs.header.revision}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 500 else text[:500] + "..."
