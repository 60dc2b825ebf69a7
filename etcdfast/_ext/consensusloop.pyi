from collections.abc import Buffer, Callable

from etcdfast._ext.peerset import EntryBatch, Peers
from etcdfast._ext.raftlog import RaftLog
from etcdfast._ext.ring import Ring, StatusPage
from etcdfast._ext.walio import Wal
from etcdfast._ext.walscan import EntryTable

APPENDED: int
DURABLE: int
TICK: int
WAKE: int
LIFE: int
CONF: int
WAL_BROKEN: int
RING_BROKEN: int
NO_MEMORY: int
ENTRY_TOO_LARGE: int
HARD: int
PEERS: int
READS: int
CALLS: int
OWN: int
INBOX: int
FORWARD: int
NOTHING: int
ALONE: int
LEADING: int
FOLLOWING: int

class LoopError(Exception): ...

class Loop:
    log: RaftLog
    wal: Wal
    term: int
    taking: int
    peers: Peers
    stable: int
    keep_index: int
    reads_wait: bool
    tell_appended: bool
    commit: int
    handed: int
    written: int
    conf_index: int
    ticks_due: int
    last_index: int
    durable_index: int
    durable_term: int
    durable_term_of_state: int
    durable_vote: int
    batches: tuple[int, int]
    idle: bool
    def __init__(
        self,
        *,
        doorbell: int,
        inbound: list[Ring],
        out: Ring,
        status: StatusPage,
        wal: Wal,
        log: RaftLog,
        peers: Peers,
        table: EntryTable | None,
        wake: int,
        life: int,
        inbox: int,
        request_prefix: int,
        request_bytes_max: int,
        tick_seconds: float,
        handed: int,
        commit: int,
        hard_state: tuple[int, int, int],
    ) -> None: ...
    def turn(self) -> int: ...
    def take(self, taking: int, term: int, leader: int) -> None: ...
    def propose(self, type: int, data: bytes, request_id: int) -> bool: ...
    def wait_for(self, request_id: int, record: bytes | None = None) -> None: ...
    def take_calls(self) -> list[bytes]: ...
    def take_own(self) -> list[int]: ...
    def refuse_call(self, record: bytes, status: int) -> bool: ...
    def pass_call(self, record: bytes) -> bool: ...
    def tell_apply(
        self, kind: int, payload: bytes, method: int = 0, index: int = 0, slot: int = 0, status: int = 0
    ) -> bool: ...
    def receive(self, step: Callable) -> None: ...
    def extend(self, batch: EntryBatch, start: int) -> None: ...
    def restore(self, index: int, term: int) -> None: ...
    def forward(self) -> None: ...
    def unblock_forward(self) -> None: ...
    def seal_reads(self) -> bool: ...
    def confirm_reads(self, index: int) -> None: ...
    def commit_to(self, index: int) -> None: ...
    def hand_hard(self, index: int, term: int) -> None: ...
    def hard_state(self, term: int, vote: int, commit: int) -> None: ...
    def flush_hard_state(self) -> None: ...
    def next_request_id(self) -> int: ...
    def release_replay(self) -> bool: ...
    def entry(self, index: int) -> tuple[int, int, bytes]: ...
    def append_snapshot(self, index: int, term: int, conf_state: Buffer) -> bool: ...
