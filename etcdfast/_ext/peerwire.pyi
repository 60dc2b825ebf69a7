from collections.abc import Iterable

Entry = tuple[int, int, int, bytes]
Fields = tuple[int, int, int, int, int, int, int, list[Entry], bool, int, bytes | None, bytes | None]

class PeerMessageError(ValueError): ...

class PeerMessage:
    type: int
    to: int
    frm: int
    snap_index: int
    def __init__(self, data: bytes) -> None: ...
    def fields(self) -> Fields: ...

class ChunkDecoder:
    ended: bool
    def feed(self, data: bytes) -> bytes: ...

def marshal_message(
    type: int,
    to: int = 0,
    frm: int = 0,
    term: int = 0,
    log_term: int = 0,
    index: int = 0,
    commit: int = 0,
    entries: Iterable[Entry] = (),
    reject: bool = False,
    reject_hint: int = 0,
    context: bytes | None = None,
    snapshot: bytes | None = None,
    *,
    empty_snapshot: bool = True,
) -> bytes: ...
