from collections.abc import Iterator

class LeaseTable:
    count: int
    attached: int
    held_bytes: int
    def __init__(self) -> None: ...
    def items(self) -> Iterator[tuple[bytes, bytes]]: ...
