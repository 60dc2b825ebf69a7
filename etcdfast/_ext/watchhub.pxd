"""The watches of a member: who watches what, what each has got, and what goes out next.

The apply process owns one hub. It brings the clients' messages (call, gone, credit), after each batch the
changes (feed), and then lets it send (deliver), read past events (catch_up) and look at the time (tick).
All records go straight into the rings of the frontends, where the loop publishes them; nothing here blocks.

What holds for every watcher: events in revision order, each once, none left out, all of a revision in one
message (or its fragments), `created` before them; a header's revision never runs ahead of what was sent.
Memory is bounded whatever clients do: recent events by LOG_BYTES_MAX and REFS_BYTES_MAX, large messages by
BLOB_BYTES_MAX, what is under way to a stream by its credit. Source: reference/formats.md 9.6.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.authtable cimport AuthTable, auth_caller
from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.ring cimport ipc_record
from etcdfast._ext.watchcore cimport WatchCore
from etcdfast._ext.watchhistory cimport event_cuts
from etcdfast._ext.watchtypes cimport event_ref, watch_group, watch_stream, watcher
from etcdfast._ext.watchwire cimport watch_request

cdef enum:
    WATCHERS_MAX = 10000000
    CONNECTION_CREDIT_BYTES = 4194304   # shared by the watch streams of one connection
    STREAM_CREDIT_MIN = 8192
    HISTORIES_MAX = 64                  # readers of past events kept between slices
    HISTORY_BUDGET = 512                # records looked at in one slice


# attach_ring, deliver and the figures are WatchCore's.
cdef class WatchHub(WatchCore):
    cdef AuthTable auth                  # None: everybody may watch everything
    cdef auth_caller caller              # whose message is at hand, while auth is on
    cdef bint bad_token                  # which came with a token that is none
    cdef uint64_t progress_interval_ns
    cdef uint64_t random
    cdef int64_t compacted_seen
    cdef int64_t window_max              # IPC_STREAM_CREDIT_BYTES
    cdef dict connections                # (frontend, slot, generation) -> how many streams
    cdef outbuf scratch                  # the event being encoded
    cdef outbuf past                     # events read from history
    cdef event_cuts cuts
    cdef event_ref *past_refs
    cdef uint32_t past_capacity

    # One WatchRequest. RPC_WATCH, IPC_CALL.
    cdef int call(self, const ipc_record *r) except -1
    # The stream is gone: 1 if it was one of ours.
    cdef int gone(self, const ipc_record *r) except -1
    # r.index more bytes have left the frontend. Streams that are gone are no error.
    cdef int credit(self, const ipc_record *r) except -1
    # What a batch changed, after it is written; mvcc.current is that of its end. Sends nothing.
    cdef int feed(self, const kv_change *changes, size_t count) except -1
    # Read and send past events for those who lag, until stop_ns (CLOCK_MONOTONIC). 1 as deliver.
    cdef int catch_up(self, int64_t stop_ns) except -1
    # Every 50 ms or so: progress notifications, end of watchers that compaction has overtaken.
    cdef int tick(self, int64_t now_ns) except -1
    # ST_WATCH_* words of the apply status page.
    cdef void figures(self, void *page) noexcept nogil

    cdef watch_stream *open_stream(self, const ipc_record *r) except NULL
    cdef int create(self, watch_stream *s, const watch_request *q) except -1
    # Why the caller may not watch that, in etcd's words; NULL: it may.
    cdef const char *forbids(self, const watch_request *q) noexcept nogil
    cdef int cancel_compacted(self, watcher *w) except -1
    cdef int notify(self, watch_stream *s, int64_t now_ns) noexcept nogil
    cdef int64_t jittered(self) noexcept nogil
    cdef int add_event(self, watch_group *g, const uint8_t *data, uint32_t size, int64_t main) noexcept nogil
    cdef const uint8_t *encode(self, const kv_change *change, bytes prev, uint32_t *size) except NULL
    cdef void bound_memory(self) noexcept nogil
    cdef int read_history(self, watch_stream *s) except -1
    cdef int history_refs(self) except -1
