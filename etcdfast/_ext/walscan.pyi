from typing import Any

OK: int
END: int
TORN: int

def describe(code: int) -> str: ...

class EntryTable:
    def __len__(self) -> int: ...
    def rows(self) -> bytes: ...
    def entry(self, i: int) -> tuple[int, int, int, bytes | None]: ...
    def survey(self) -> tuple[list[tuple[int, int]], list[int]]: ...

class LogScan:
    table: EntryTable
    snapshot_index: int
    metadata: bytes | None
    snapshots: list[tuple[int, int, bytes | None]]
    offset: int
    crc: int
    last_index: int
    last_term: int
    records: int
    state: tuple[int, int, int]
    def __init__(self, snapshot_index: int = 0) -> None: ...
    def segment(self, buffer: Any, last: bool) -> int: ...

class SegmentScan:
    table: EntryTable
    offset: int
    first_index: int
    def __init__(self, buffer: Any) -> None: ...
    def term(self, i: int) -> int: ...
    def extend(self, end: int) -> int: ...
