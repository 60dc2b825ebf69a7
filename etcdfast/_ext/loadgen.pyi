from typing import Any

from etcdfast._ext.tlscontext import TlsContext

# family, sockaddr, headers: entering, plain, number, table bytes; whom TLS expects: b"" anybody, None: no TLS
Row = tuple[int, bytes, bytes, bytes, int, int, bytes | None]
# gRPC message, offsets of keys and of values, method, offset of a lease id (0: none), whether the id goes with
# the client, offset of a TTL (0: none)
Message = tuple[bytes, list[int], list[int], int, int, bool, int]

class Generator:
    """Closed-loop load of `clients` clients on `conns` connections, in one thread, and watch streams beside it.

    Client i uses connection i % load_conns (0: all); connection c starts at endpoint c % len(endpoints).
    Stream j uses connection stream_conn + j % (conns - stream_conn), makes `watchers_each` watchers one
    after another (request number streams[j] * watchers_each and on, template 1), and keeps reading events.
    A watch stream that ends, or a watcher that is refused or canceled, ends the run: `streams_lost`.
    `shared` is a writable buffer of at least 128 + 64 * workers bytes, zeroed: int64 next request
    number at 0, int64 stop flag at 64, int64 requests done by worker w at 128 + 64 * w, behind it the
    watchers made and the events received.
    `rate` is requests per second of this generator (0: no limit). Of two templates the first is
    used for the share `read_share` of the requests (`load_kinds` 2). `methods`: `:path` headers
    (endpoints.path_literal) that templates name by index. `key_numbers`: uint64s that keys in turn have.
    `renewing`: answers are LeaseKeepAliveResponses; `held`: a client sends all on one stream.
    `stamped`: values begin with their put's time, so that events tell their age (histogram 2); with
    `latency_by_number` the n-th event of a watcher is that of request n (histograms 2 and 3). A connection
    is replaced by a new one when its stream ids pass `stream_ids_max`. `acknowledged` remembers which requests
    were answered well, for the first 2**27 of them.

    `stm`: clients run transactions instead (isolation, lock, keys, keys of a transaction, how many it
    writes; numbers of loadtypes); the methods are then Txn, Range, DeleteRange, Watch, Lock, Unlock.

    Errors: ValueError for shapes that do not fit, OSError when epoll cannot be had.
    """

    open_conns: int
    running: int
    aborted: bool
    start_ns: int
    end_ns: int
    response_bytes: int
    reconnects: int
    streams_lost: int
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
        methods: list[bytes],
        stream_ids_max: int = 0x7FFFFFF1,
        load_kinds: int = 1,
        load_conns: int = 0,
        renewing: bool = False,
        held: bool = False,
        streams: list[int] = ...,
        watchers_each: int = 0,
        stream_conn: int = 0,
        key_numbers: Any = None,
        stamped: bool = False,
        latency_by_number: bool = False,
        lease_base: int = 0,
        ttl_end_ns: int = 0,
        stm: tuple[int, int, int, int, int] | tuple[()] = (),
        acknowledged: bool = False,
        tls: TlsContext | None = None,
    ) -> None: ...
    def poll(self, slice_ns: int) -> None: ...
    def hold(self, on: bool) -> None: ...
    def start(self) -> None: ...
    def start_streams(self) -> None: ...
    def watch_counts(self) -> tuple[int, int, int, int, int, int, int, int]: ...
    def connect_error(self) -> str: ...
    def histogram(self, kind: int) -> tuple[int, int, int, int, float, bytes]: ...
    def seconds_of(self, kind: int) -> list[tuple[int, int, int, int, int]]: ...
    def timeline(self) -> bytes: ...
    def acknowledged(self) -> bytes: ...
    def error_rows(self) -> list[tuple[int, int, bytes]]: ...
