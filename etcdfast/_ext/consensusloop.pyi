from collections.abc import Buffer

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

class LoopError(Exception): ...

def survey(table: EntryTable) -> tuple[list[tuple[int, int]], list[int]]: ...

class Loop:
    log: RaftLog
    wal: Wal
    term: int
    accepting: bool
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
        table: EntryTable | None,
        wake: int,
        life: int,
        request_prefix: int,
        request_bytes_max: int,
        tick_seconds: float,
        handed: int,
        commit: int,
        hard_state: tuple[int, int, int],
    ) -> None: ...
    def turn(self) -> int: ...
    def lead(self, term: int, accepting: bool) -> None: ...
    def commit_to(self, index: int) -> None: ...
    def hand_hard(self, index: int, term: int) -> None: ...
    def hard_state(self, term: int, vote: int, commit: int) -> None: ...
    def flush_hard_state(self) -> None: ...
    def next_request_id(self) -> int: ...
    def release_replay(self) -> bool: ...
    def entry(self, index: int) -> tuple[int, int, bytes]: ...
    def append_snapshot(self, index: int, term: int, conf_state: Buffer) -> bool: ...
