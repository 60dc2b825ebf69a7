from typing import Any

class BoltError(Exception):
    path: Any
    page: int | None
    reason: str
    def __init__(self, path: Any, page: int | None, reason: str) -> None: ...

class BoltFile:
    path: Any
    file_bytes: int
    page_bytes: int
    pages: int
    root: int
    has_freelist: bool
    freelist_page: int
    txid: int
    def __init__(self, fd: int, path: Any) -> None: ...
    def check_freelist(self, seen: PageSet) -> None: ...

class PageSet:
    def __init__(self, file: BoltFile) -> None: ...

class Tree:
    sequence: int
    items: int
    def __init__(self, file: BoltFile, bucket: bytes | None = None, seen: PageSet | None = None) -> None: ...
    def batch(self, items_max: int, prefix: bytes = b"", buckets: bool = False) -> list[tuple[bytes, bytes]]: ...
    def crc(self, seed: int) -> int: ...
    def walk(self) -> list[bytes]: ...
    def last_key(self) -> bytes | None: ...
