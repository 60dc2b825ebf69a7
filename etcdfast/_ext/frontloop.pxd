"""Epoll loop of a frontend process: rings, deadlines and the order of a turn.

Sockets are frontconn.pxd's, HTTP/2 is http2.pxd's.

One turn: take events, deliver what apply answered, read sockets (one read each), publish requests, write
(one write per connection), give CREDIT, release the ring. Answers are sent straight from the ring; what
the sockets did not take is copied before the ring's bytes are released.
"""

from etcdfast._ext.frontconn cimport loop_t
from etcdfast._ext.tlscontext cimport TlsContext


cdef class FrontLoop:
    cdef loop_t *loop
    cdef list kept       # what the C structures point into
    cdef _watch(self, int fd, unsigned long tag, unsigned int what)
    cdef _set_tls(self, TlsContext tls, tls_listeners)
    cdef _set_routes(self, rpcs)
    cdef _set_errors(self, errors)
