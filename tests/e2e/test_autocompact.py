"""Auto-compaction seen from outside: what is newer than the retention stays readable, what is older goes."""

from __future__ import annotations

import threading
import time

import pytest

from tests.harness import Server, ServerError, new_server, pb, target_name, wait_until

PERIOD_SECONDS = 1.0
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
KINDS = [target_name()]


class Writer(threading.Thread):
    """Puts one key after another and remembers when each revision was made obsolete by the next."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="writer", daemon=True)
        self.server = server
        self.replaced: dict[int, float] = {}  # revision -> when the put that replaced it was sent
        self.newest = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        with self.server.client() as client:
            while not self._stopping.wait(0.01):
                sent = time.monotonic()
                revision = client.put(b"key", b"v").header.revision
                self.replaced[revision - 1] = sent
                self.newest = revision

    def stop(self) -> None:
        self._stopping.set()
        self.join(20)


def _readable(client, revision: int) -> bool:
    reply = client.call("Range", pb.RangeRequest(key=b"key", revision=revision))
    assert reply.ok or reply.text == COMPACTED, reply
    return reply.ok


@pytest.mark.parametrize("kind", KINDS)
def test_periodic_compaction_keeps_what_is_young(kind: str) -> None:
    """Two rounds: first the oldest revision goes, then the one that was the newest at that time."""
    flags = ["--auto-compaction-mode=periodic", f"--auto-compaction-retention={PERIOD_SECONDS}s"]
    server = new_server(kind, flags=flags)
    with server, server.client() as client:
        client.put(b"key", b"v")
        writer = Writer(server)
        writer.start()
        wait_until(lambda: writer.newest > 2, "the first puts")
        old = 2
        for _ in range(2):
            wait_until(lambda old=old: not _readable(client, old), f"revision {old} to be compacted")
            # The oldest that still can be read, and with it every younger one.
            low, high = old, writer.newest
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if _readable(client, middle) else (middle, high)
            gone, now = low, time.monotonic()
            assert now - writer.replaced[gone] >= PERIOD_SECONDS, (
                f"revision {gone}, replaced {now - writer.replaced[gone]:.3f} s ago, is compacted already"
            )
            old = writer.newest - 1
        writer.stop()
        assert _readable(client, writer.newest)
        assert client.get(b"key").kvs[0].mod_revision == writer.newest


@pytest.mark.parametrize("kind", KINDS)
def test_revision_mode_starts_and_compacts_nothing_at_once(kind: str) -> None:
    """It looks every five minutes only (its rule is tested with an injected clock); a plain number is revisions."""
    server = new_server(kind, flags=["--auto-compaction-mode=revision", "--auto-compaction-retention=1"])
    with server, server.client() as client:
        for _ in range(20):
            client.put(b"key", b"v")
        assert _readable(client, 2)
        server.stop()


WRONG = (
    (["--auto-compaction-mode=sometimes", "--auto-compaction-retention=1"], 'unknown auto-compaction-mode "sometimes"'),
    (["--auto-compaction-retention=often"], "error parsing CompactionRetention"),
    (["--auto-compaction-mode=revision", "--auto-compaction-retention=-1"], "error parsing CompactionRetention"),
)


@pytest.mark.parametrize("flags,text", WRONG, ids=["mode", "retention", "negative"])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_values_are_refused(kind: str, flags: list[str], text: str) -> None:
    server = new_server(kind, flags=flags)
    try:
        with pytest.raises(ServerError, match="ended with status"):
            server.start()
        printed = server.log_text()
        assert text in printed.replace("\\", ""), printed
        assert "Traceback" not in printed
    finally:
        server.close()
