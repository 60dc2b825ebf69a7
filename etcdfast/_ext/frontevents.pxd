"""EVENTS records: one WatchResponse for up to a thousand watchers, composed for each of them.

The hottest path of a watch fan-out. Per target: find the stream, write head, watch id and events into its pen
(h2pen.pxd); nghttp2 and the socket are met once per stream and connection and turn. Large events are not
copied: each message borrows them from the ring until h2_settle.
"""

from libc.stdint cimport uint64_t

from etcdfast._ext.frontconn cimport loop_t
from etcdfast._ext.ring cimport ipc_record

cdef enum:
    EVENTS_LENT_BYTES = 512        # from here on a chunk of its own is cheaper than a copy (bench/micro/events.py)
    EVENTS_HEAD_BYTES_MAX = 48     # a ResponseHeader has 46
    EVENTS_TARGETS_MAX = 65536
    # Made of EVENTS in one turn; then what there is goes to the sockets first. Without it a ring full of
    # records for a thousand watchers each would be unfolded into memory at once.
    TURN_EVENT_BYTES_MAX = 8388608

# Bytes made of the record. Targets that are gone or ended are skipped; so is a record that is not sound.
cdef uint64_t events_deliver(loop_t *loop, ipc_record *r) noexcept nogil
