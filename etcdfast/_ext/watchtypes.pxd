"""What the watch hub is made of: watchers, their groups and streams, and the recent events.

A watcher is at the FRONT (in its group's array: it has, or gets with the group's next piece, all that has
happened) or LAGGING (in the lists of its stream and its group, with the first revision it has not got).
Watchers of equal range and options form a group; what a group is sent is made once. All blocks come from
one arena of the hub; one thread.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.watchtree cimport watch_range

# watcher.flags
cdef enum:
    WATCHER_LAGGING = 1
    WATCHER_AHEAD = 2        # at the front, but gets nothing below next_rev
    WATCHER_FUTURE = 4       # the same, because its client asked for a revision still to come
    WATCHER_NOTIFY = 8       # progress_notify
    WATCHER_SENT = 16        # of such a one: events went out since its last notification was due
    WATCHER_FRAGMENT = 32    # its large messages may be cut between events
    WATCHER_SENDING = 64     # a large message to it is under way


# In which list of work a stream is.
cdef enum:
    QUEUE_NONE = 0
    QUEUE_READY = 1          # has credit and something that needs no reading
    QUEUE_HISTORY = 2        # has credit and must read past events
    QUEUE_BLOB = 3           # waits until large messages take less memory

# In which list an event_buffer is.
cdef enum:
    BUFFER_NONE = 0
    BUFFER_DIRTY = 1         # holds events that the front has not got
    BUFFER_KEPT = 2          # holds events for those who lag


# A node of a circular list; the head is a node of its own, without stream.
ctypedef struct stream_link:
    stream_link *next
    stream_link *prev
    watch_stream *stream

ctypedef struct watcher:
    watch_stream *stream
    watch_group *group
    int64_t watch_id
    int64_t next_rev         # LAGGING or AHEAD: all below it is sent or not wanted; else unused
    watcher *stream_next     # LAGGING: circular list of the stream's
    watcher *stream_prev
    watcher *group_next      # LAGGING: list of the group's
    watcher *group_prev
    uint32_t place           # at the front: index in group.front
    uint32_t flags           # WATCHER_*

ctypedef struct watch_group:
    watch_range *range       # its owner is the list of groups through `next`
    watch_group *next
    watcher **front          # &only while capacity is 1
    watcher *only
    watcher *lag_first
    watcher *lag_last
    event_buffer *buffer     # NULL: nothing unsent, nothing kept
    uint32_t front_count
    uint32_t front_capacity
    uint32_t watchers        # front and lagging
    uint32_t options         # HISTORY_PREV_KV, HISTORY_NO_PUT, HISTORY_NO_DELETE

# The bytes of fields 11 of a WatchResponse that belong to one revision, or a part of them.
ctypedef struct event_ref:
    const uint8_t *data
    int64_t main
    uint32_t size
    uint32_t events

ctypedef struct event_buffer:
    watch_group *group
    event_buffer *next       # list it is in
    event_buffer *prev
    event_ref *refs          # by main, [first, count) are live
    uint64_t bytes           # of live refs
    int64_t floor            # every event of the group from this revision on is in refs
    uint32_t first
    uint32_t count
    uint32_t capacity
    uint32_t sent            # refs below went to the front
    uint32_t piece_end       # refs [sent, piece_end) are being sent; 0: no piece begun
    uint32_t cursor          # front watchers below have it
    uint32_t list            # BUFFER_*

# The events of one revision that are too many for a record, shared by the streams that are sent them.
ctypedef struct watch_blob:
    watch_blob *next
    watch_blob *prev
    watch_group *group       # NULL once that is gone
    int64_t main
    uint64_t size
    uint32_t users
    uint32_t events
    uint8_t *data            # behind this struct

cdef enum:
    HEAD_BYTES_MAX = 80      # ResponseHeader with tag, watch id, fragment

# A large message that a stream is being sent.
ctypedef struct big_send:
    watch_blob *blob
    watcher *target          # NULL once cancelled
    int64_t watch_id
    uint64_t at              # next byte of blob.data
    uint64_t end             # of the message under way; behind it there are fragments to come
    uint64_t fragment_bytes  # a message must stay below it; 0: no fragments
    uint32_t head_size
    uint32_t head_at
    bint begun               # BEGIN is in the ring
    uint8_t head[HEAD_BYTES_MAX]
    outbuf held              # ipc_records: answers to the client's requests that go behind it

ctypedef struct watch_stream:
    stream_link work         # in the list that `queue` says
    stream_link ticker       # those with progress_notify watchers
    stream_link wish         # those that asked for progress before they were at the front
    uint32_t slot
    uint32_t generation
    uint32_t stream
    uint8_t frontend
    uint8_t flags            # of its first record
    uint8_t queue            # QUEUE_*
    int64_t credit           # bytes; may be below 0 by one message and the control answers
    int64_t window           # credit never exceeds it
    int64_t next_id          # automatic watch ids count up from here
    int64_t future_rev       # a watcher with WATCHER_FUTURE waits for it; 0 not known
    int64_t progress_due     # CLOCK_MONOTONIC ns, 0 not yet set
    watcher **ids            # open addressing by watch id
    watcher *lag_head        # whose turn it is
    big_send *big            # NULL: no large message under way
    uint32_t id_count
    uint32_t id_capacity     # power of two, 0 none
    uint32_t lagging
    uint32_t notified        # watchers with progress_notify
    uint32_t futures         # watchers with WATCHER_FUTURE


cdef inline void link_init(stream_link *link, watch_stream *stream) noexcept nogil:
    link.next = link.prev = link
    link.stream = stream


cdef inline bint link_alone(const stream_link *link) noexcept nogil:
    return link.next == link


cdef inline void link_push(stream_link *head, stream_link *link) noexcept nogil:
    link.prev = head.prev
    link.next = head
    head.prev.next = link
    head.prev = link


cdef inline void link_remove(stream_link *link) noexcept nogil:
    link.prev.next = link.next
    link.next.prev = link.prev
    link.next = link.prev = link
