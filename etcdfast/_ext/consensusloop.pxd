"""The consensus loop as Python deals with it: what the raft core decides goes in, what happened comes out."""

from libc.stdint cimport uint32_t, uint64_t

from etcdfast._ext.consensusturn cimport Turn


cdef class Loop(Turn):
    cdef watch(self, int fd, uint32_t what, uint32_t events)
