# HTTP/2 of the load generator: bytes in, settled requests out; requests in, frames out. No I/O.

from libc.stdint cimport int32_t, int64_t, uint8_t

from etcdfast._ext.loadtypes cimport Conn, Load


# Begin a connection: the preface goes into the output. 0, or END_MEMORY.
cdef int h2_start(Load* g, Conn* c) noexcept nogil
# End a connection: its streams, its decoder and what was not sent are forgotten.
cdef void h2_stop(Conn* c) noexcept nogil
# Take p[:n] as it came from the peer at time `now`. Requests that end are settled, and their
# clients get the next one. 0, or END_*: the connection must be closed with that reason.
cdef int h2_receive(Load* g, Conn* c, const uint8_t* p, size_t n, int64_t now) noexcept nogil
# Put every frame that may go now into the output. 0, or END_* (END_DRAINED: nothing is left to do here).
cdef int h2_fill(Load* g, Conn* c) noexcept nogil
