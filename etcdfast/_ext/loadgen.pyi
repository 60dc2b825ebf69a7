from typing import Any

Row = tuple[int, bytes, bytes, bytes, bytes, int]  # family, sockaddr, three header blocks, table bytes
Message = tuple[bytes, list[int], list[int]]  # gRPC message, offsets of keys, offsets of values

class Generator:
    """Closed-loop load of `clients` clients on `conns` connections, in one thread.

    Client i uses connection i % conns; connection c starts at endpoint c % len(endpoints).
    `shared` is a writable buffer of at least 128 + 64 * workers bytes, zeroed: int64 next request
    number at 0, int64 stop flag at 64, int64 requests done by worker w at 128 + 64 * w.
    `rate` is requests per second of this generator (0: no limit). Of two templates the first is
    used for the share `read_share` of the requests. A connection is replaced by a new one when its
    stream ids pass `stream_ids_max`.

    Errors: ValueError for shapes that do not fit, OSError when epoll cannot be had.
    """

    open_conns: int
    running: int
    aborted: bool
    start_ns: int
    end_ns: int
    response_bytes: int
    reconnects: int
    def __init__(
        self,
        *,
        conns: int,
        clients: int,
        endpoints: list[Row],
        templates: list[Message],
        shared: Any,
        worker: int,
        total: int,
        rate: float,
        key_bytes: int,
        value_bytes: int,
        key_space: int,
        sequential: bool,
        read_share: float,
        seed: int,
        streaming: bool,
        dial_timeout_seconds: float,
        stream_ids_max: int = 0x7FFFFFF1,
    ) -> None: ...
    def poll(self, slice_ns: int) -> None: ...
    def start(self) -> None: ...
    def connect_error(self) -> str: ...
    def histogram(self, kind: int) -> tuple[int, int, int, int, float, bytes]: ...
    def seconds_of(self, kind: int) -> list[tuple[int, int, int, int, int]]: ...
    def error_rows(self) -> list[tuple[int, int, bytes]]: ...
