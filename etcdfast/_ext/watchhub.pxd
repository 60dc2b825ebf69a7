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

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.ring cimport ipc_record, ring_view
from etcdfast._ext.watchhistory cimport History, event_cuts
from etcdfast._ext.watchlog cimport buffer_list, buffer_pool, event_log, log_mark
from etcdfast._ext.watchsend cimport event_piece, outlet
from etcdfast._ext.watchtable cimport stream_table
from etcdfast._ext.watchtree cimport WatchTree
from etcdfast._ext.watchtypes cimport (
    event_buffer, event_ref, stream_link, watch_blob, watch_group, watch_stream, watcher,
)
from etcdfast._ext.watchwire cimport watch_request

cdef enum:
    FRONTENDS_MAX = 64
    WATCHERS_MAX = 10000000
    CONNECTION_CREDIT_BYTES = 4194304   # shared by the watch streams of one connection
    STREAM_CREDIT_MIN = 8192
    LOG_BYTES_MAX = 50331648            # recent events
    REFS_BYTES_MAX = 16777216           # who needs which of them
    GROUP_BYTES_MAX = 1048576           # of events kept for the laggards of one group
    BLOB_BYTES_MAX = 268435456          # large messages under way; further ones wait
    HISTORIES_MAX = 64                  # readers of past events kept between slices
    HISTORY_BUDGET = 512                # records looked at in one slice
    READY_MAX = 256                     # streams served by one deliver and frontend
    STALLED_MAX = 64                    # groups found without room before deliver gives up for now


cdef class WatchHub:
    cdef Mvcc mvcc
    cdef WatchTree tree                  # its arena holds all blocks of the hub
    cdef header_ids *ids                 # of the ResponseHeader; the loop sets it to the one it keeps
    cdef header_ids no_ids
    cdef readonly bint following         # whether there is any watcher: else feed need not be called
    cdef readonly bint crowded           # answers wait for room: take no calls until deliver changed that
    cdef readonly uint64_t watchers
    cdef readonly uint64_t lagging       # of them, those that have not got all that happened
    cdef readonly uint64_t events_sent   # since the start, counted for each watcher
    cdef readonly int64_t fed            # revision up to which changes came in
    cdef uint64_t progress_interval_ns
    cdef uint64_t message_bytes_max      # a message of a watcher with `fragment` stays below it
    cdef uint64_t random
    cdef int64_t compacted_seen
    cdef uint64_t piece_bytes            # PIECE_BYTES, less when a ring is small
    cdef uint64_t part_bytes
    cdef int frontends                   # outlets in use are below this
    cdef outlet outlets[FRONTENDS_MAX]
    cdef stream_table streams
    cdef dict connections                # (frontend, slot, generation) -> how many streams
    cdef stream_link reading             # streams with QUEUE_HISTORY
    cdef stream_link starved             # streams with QUEUE_BLOB
    cdef stream_link ticking             # streams with watchers that want progress
    cdef stream_link wishing             # streams that wait for the answer to a progress request
    cdef event_log log
    cdef log_mark turn_mark              # where this turn's events begin in the log
    cdef bint turn_marked
    cdef bint turn_kept                  # somebody lags who may want them
    cdef int64_t torn                    # revision in the middle of which a buffer was last given up
    cdef buffer_list dirty
    cdef buffer_list kept
    cdef buffer_pool pool
    cdef watch_blob *blobs
    cdef readonly uint64_t blob_bytes
    cdef dict histories                  # address of a group -> History, the oldest first
    cdef outbuf scratch                  # the event being encoded
    cdef outbuf past                     # events read from history
    cdef event_cuts cuts
    cdef event_ref *past_refs
    cdef uint32_t past_capacity
    cdef event_piece piece

    # Where answers for a frontend go. Before any record of it comes.
    cdef void attach_ring(self, int frontend, ring_view *af) noexcept
    # One WatchRequest. RPC_WATCH, IPC_CALL.
    cdef int call(self, const ipc_record *r) except -1
    # The stream is gone: 1 if it was one of ours.
    cdef int gone(self, const ipc_record *r) except -1
    # r.index more bytes have left the frontend. Streams that are gone are no error.
    cdef int credit(self, const ipc_record *r) except -1
    # What a batch changed, after it is written; mvcc.current is that of its end. Sends nothing.
    cdef int feed(self, const kv_change *changes, size_t count) except -1
    # Send what can be sent without reading. 1 when more could be done at once; what finds no room has asked for it.
    cdef int deliver(self) except -1
    # Read and send past events for those who lag, until stop_ns (CLOCK_MONOTONIC). 1 as deliver.
    cdef int catch_up(self, int64_t stop_ns) except -1
    # Every 50 ms or so: progress notifications, end of watchers that compaction has overtaken.
    cdef int tick(self, int64_t now_ns) except -1
    # ST_WATCH_* words of the apply status page.
    cdef void figures(self, void *page) noexcept nogil

    cdef watch_stream *open_stream(self, const ipc_record *r) except NULL
    cdef int create(self, watch_stream *s, const watch_request *q) except -1
    cdef watch_group *group_for(self, const watch_request *q) except NULL
    cdef int group_drop(self, watch_group *g) except -1
    cdef int answer(
        self, watch_stream *s, int64_t revision, int64_t watch_id, bint created, bint canceled,
        int64_t compact_revision, const char *reason
    ) except -1
    cdef int detach(self, watcher *w) except -1
    cdef int remove(self, watcher *w) except -1
    cdef int cancel_compacted(self, watcher *w) except -1
    cdef int progress(self, watch_stream *s) except -1
    cdef bint all_at_front(self, const watch_stream *s) noexcept nogil
    cdef bint waits_for_future(self, const watch_stream *s) noexcept nogil

    cdef int add_event(self, watch_group *g, const uint8_t *data, uint32_t size, int64_t main) noexcept nogil
    cdef const uint8_t *encode(self, const kv_change *change, bytes prev, uint32_t *size) except NULL
    cdef void bound_memory(self) noexcept nogil
    cdef void buffer_drop(self, event_buffer *b) noexcept nogil
    cdef void buffer_settle(self, event_buffer *b) noexcept nogil
    cdef void fall_behind(self, watcher *w, int64_t next_rev) noexcept nogil
    cdef void fall_back(self, event_buffer *b) noexcept nogil
    cdef int lag_state(self, const watcher *w) noexcept nogil
    cdef void join(self, watcher *w) noexcept nogil
    cdef void schedule(self, watch_stream *s) noexcept nogil
    cdef void unqueue(self, watch_stream *s) noexcept nogil
    cdef void close_pieces(self) noexcept nogil
    cdef bint send_front(self, event_buffer *b) noexcept nogil
    cdef int send_lagging(self, watcher *w, int64_t next_rev) noexcept nogil
    cdef int serve(self, outlet *o, watch_stream *s) except -1
    cdef int serve_ready(self) except -1
    cdef int start_big(self, watch_stream *s, watcher *w, const event_ref *refs, uint32_t count) except -1
    cdef int end_big(self, watch_stream *s) except -1
    cdef void blob_release(self, watch_blob *blob) noexcept nogil
    cdef int read_history(self, watch_stream *s) except -1
    cdef int history_refs(self) except -1
    cdef int notify(self, watch_stream *s, int64_t now_ns) noexcept nogil
    cdef int64_t jittered(self) noexcept nogil
