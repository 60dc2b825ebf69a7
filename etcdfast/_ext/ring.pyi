STATUS_PAGE_BYTES: int
RECORD_HEADER_BYTES: int
KINDS: dict[str, int]
ALIVE_WORD: int
NOBODY: int
SELF: int
FLAG_NEW_ID: int
CONSENSUS_WORDS: dict[str, int]
APPLY_WORDS: dict[str, int]

class RingError(Exception): ...

def format_ring(fd: int, capacity: int) -> None: ...

class Ring:
    capacity: int
    room: int
    def __init__(self, fd: int, peer_doorbell: int) -> None: ...
    def push(
        self,
        kind: int,
        payload: bytes = b"",
        *,
        method: int = 0,
        frontend: int = ...,
        flags: int = 0,
        slot: int = 0,
        generation: int = 0,
        stream: int = 0,
        status: int = 0,
        index: int = 0,
        term: int = 0,
        publish: bool = True,
    ) -> bool: ...
    def publish(self) -> None: ...
    def pop(self) -> dict | None: ...
    def sleep(self) -> bool: ...
    def awake(self) -> None: ...
    def await_room(self, length: int) -> bool: ...

class StatusPage:
    def __init__(self, fd: int) -> None: ...
    def __getitem__(self, word: int) -> int: ...
    def __setitem__(self, word: int, value: int) -> None: ...
