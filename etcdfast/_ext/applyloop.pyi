from collections.abc import Callable
from typing import Any

from etcdfast._ext.kvops import KvOps
from etcdfast._ext.leaseclock import LeaseClock
from etcdfast._ext.longanswers import LongAnswers
from etcdfast._ext.mvcc import Mvcc
from etcdfast._ext.outbox import LoopError as LoopError
from etcdfast._ext.outbox import Outbox
from etcdfast._ext.outbox import SupervisorGone as SupervisorGone
from etcdfast._ext.ring import Ring, StatusPage
from etcdfast._ext.watchhub import WatchHub

class EntryCorrupt(Exception): ...

class ApplyLoop:
    mvcc: Mvcc
    ops: KvOps
    answers: LongAnswers
    applied_index: int
    applied_term: int
    stored_index: int
    turns: int
    ready: bool
    stopping: bool
    aside: Callable[[], None] | None  # called once, between two turns, and forgotten
    def __init__(
        self,
        ops: KvOps,
        hub: WatchHub,
        leases: LeaseClock,
        meta_batch: Any,
        compactor: Any,
        housekeeper: Callable[[int], None],
        housekeeping_ns: int,
    ) -> None: ...
    def connect(
        self,
        ca: Ring,
        from_frontends: list[Ring],
        out: Outbox,
        own: StatusPage,
        consensus: StatusPage,
    ) -> None: ...
    def start_at(self, index: int, term: int) -> None: ...
    def attach_cold(self, cold: Any, services: Any) -> None: ...
    def run(self) -> None: ...
    def run_turn(self) -> bool: ...
    def answer_compacted(self) -> None: ...
    def store_meta(self, key: bytes, value: bytes) -> None: ...
    def store_applied(self) -> None: ...
