"""What the watch hub rests on: groups of watchers, delivery to their front, those who lag, large messages.

A group's events come into its buffer (watchhub); here they go out. Whoever has no credit when they do falls
behind, and is served from the buffer, or by watchhub from history, until it stands at the front again.
Everything that sends does it straight into the rings and never blocks.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.ring cimport ring_view
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
    LOG_BYTES_MAX = 50331648            # recent events
    REFS_BYTES_MAX = 16777216           # who needs which of them
    GROUP_BYTES_MAX = 1048576           # of events kept for the laggards of one group
    BLOB_BYTES_MAX = 268435456          # large messages under way; further ones wait
    READY_MAX = 256                     # streams served by one deliver and frontend
    STALLED_MAX = 64                    # groups found without room before deliver gives up for now

# Where a watcher that lags stands.
cdef enum:
    LAG_FRONT = 0        # it has all that the front has
    LAG_BUFFER = 1       # what it lacks is in its group's buffer
    LAG_HISTORY = 2      # it must read


cdef class WatchCore:
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
    cdef uint64_t message_bytes_max      # a message of a watcher with `fragment` stays below it
    cdef uint64_t piece_bytes            # PIECE_BYTES, less when a ring is small
    cdef uint64_t part_bytes
    cdef uint64_t log_bytes_max          # the limits named above; tests have smaller ones
    cdef uint64_t refs_bytes_max
    cdef uint64_t group_bytes_max
    cdef uint64_t blob_bytes_max
    cdef int frontends                   # outlets in use are below this
    cdef outlet outlets[FRONTENDS_MAX]
    cdef stream_table streams
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
    cdef event_piece piece               # the one being sent

    # Where answers for a frontend go. Before any record of it comes.
    cdef void attach_ring(self, int frontend, ring_view *af) noexcept
    # Send what can be sent without reading. 1 when more could be done at once; what finds no room has asked for it.
    cdef int deliver(self) except -1

    cdef watch_group *group_for(self, const watch_request *q) except NULL
    # Forget a group if nobody is left in it.
    cdef int group_drop(self, watch_group *g) except -1
    # Out of everything, and freed; detach leaves it in the ids of its stream.
    cdef int remove(self, watcher *w) except -1
    cdef int detach(self, watcher *w) except -1
    # A WatchResponse without events, never refused for credit or room.
    cdef int answer(
        self, watch_stream *s, int64_t revision, int64_t watch_id, bint created, bint canceled,
        int64_t compact_revision, const char *reason
    ) except -1
    # A progress request.
    cdef int progress(self, watch_stream *s) except -1
    cdef bint all_at_front(self, const watch_stream *s) noexcept nogil
    cdef bint waits_for_future(self, watch_stream *s) noexcept nogil

    cdef void buffer_drop(self, event_buffer *b) noexcept nogil
    # After what is in it was sent, or somebody left: keep it, keep less, or drop it.
    cdef void buffer_settle(self, event_buffer *b) noexcept nogil
    # From the front to those who lag, with all below next_rev sent.
    cdef void fall_behind(self, watcher *w, int64_t next_rev) noexcept nogil
    # Give up a buffer with unsent events: the front of its group goes on through history.
    cdef void fall_back(self, event_buffer *b) noexcept nogil
    cdef int lag_state(self, const watcher *w) noexcept nogil
    # To the front. Precondition: LAG_FRONT.
    cdef void join(self, watcher *w) noexcept nogil
    # Into the list of those that something can be done for, if it is not in one and has credit.
    cdef void schedule(self, watch_stream *s) noexcept nogil
    cdef void unqueue(self, watch_stream *s) noexcept nogil

    cdef void close_pieces(self) noexcept nogil
    cdef bint send_front(self, event_buffer *b) noexcept nogil
    # self.piece to a watcher and its like, who then lack what is from next_rev on. SEND_*.
    cdef int send_lagging(self, watcher *w, int64_t next_rev) noexcept nogil
    cdef int serve(self, outlet *o, watch_stream *s) except -1
    cdef int serve_ready(self) except -1
    # One revision (count refs) to a watcher in parts; whose turn it is. SEND_DONE.
    cdef int start_big(self, watch_stream *s, watcher *w, const event_ref *refs, uint32_t count) except -1
    cdef int end_big(self, watch_stream *s) except -1
    cdef void blob_release(self, watch_blob *blob) noexcept nogil
