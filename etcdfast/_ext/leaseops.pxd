"""Leases carried out: grant, revoke and checkpoint entries, keep-alives and queries, and what falls due.

Entries work as in kvops: the request's bytes in, an ERR_ id or a negative code out, the whole response
message in `out`. They are deterministic but for the expiry times, which only the leader ("primary") keeps and
which are never stored. `now_ns` is the loop's clock (CLOCK_MONOTONIC), set before entries are applied and
whenever else time has passed.

Sources: reference/formats.md 11, etcd-behaviour.md G8 and G9.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.kvops cimport KvOps
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.leasetable cimport LeaseTable, lease_key, lease_row
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf

# Beside ERR_ ids and OPS_FAILED (-1), OPS_MALFORMED (-2):
cdef enum:
    LEASE_WAITS = -3        # park the asker under the request's lease id until `settled` names that id
    LEASE_SLICED = -4       # revoke: go on with revoke_step
    LEASE_NOT_PRIMARY = -5  # only the leader can say

cdef enum:
    OFFERS_MAX = 2048           # revokes proposed and not applied yet
    DUE_STEPS_MAX = 4096        # queue items looked at in one call of due
    CHECKPOINTS_MAX = 256       # leases of one LeaseCheckpointRequest: a fraction of a millisecond to apply
    REVOKE_KEYS_MAX = 1024      # keys that a slice of a revoke deletes, in about 2 ms; fewer go at once

ctypedef struct lease_offer:
    lease_row *row
    int64_t retry_ns


cdef class LeaseOps:
    cdef readonly Mvcc mvcc
    cdef readonly LeaseTable table
    cdef KvOps ops                      # header ids and alarms
    cdef public int64_t now_ns
    cdef readonly bint primary
    cdef readonly int64_t min_ttl       # seconds
    cdef int64_t extend_ns              # of the election timeout, given at promote
    cdef int64_t checkpoint_ns          # between two checkpoints of a lease; 0: none are made
    cdef int64_t checkpoint_next_ns     # the next request may not be made before
    cdef lease_offer offers[OFFERS_MAX]
    cdef readonly int offered
    cdef int64_t retry_ns               # no offer is to be repeated before
    cdef int64_t *settled_ids
    cdef size_t settled_count
    cdef size_t settled_capacity
    cdef readonly uint64_t granted      # since the start, as the next three
    cdef readonly uint64_t revoked
    cdef readonly uint64_t renewed
    cdef readonly uint64_t expired
    # A revoke in slices.
    cdef lease_row *revoking            # NULL: none under way
    cdef lease_key **heap               # its keys, the smallest first out
    cdef size_t heap_count
    cdef size_t heap_capacity
    cdef lease_key *gathered_to         # next key to take into the heap
    cdef outbuf made                    # answers, for Python
    cdef int64_t revoking_sub           # Mvcc.sub between slices, where readers must not see it

    # ---- entries. ERR_ id, OPS_MALFORMED ----

    cdef int grant(self, const bytes_view *message, outbuf *out) except -1
    # Also LEASE_SLICED: the loop then calls revoke_step(out, REVOKE_KEYS_MAX) once per turn until it is 0, and
    # takes no entry and writes no batch before that. Reads, calls and watches go on and see the revision
    # before (RevIndex asked at mvcc.current, never at 0).
    cdef int revoke(self, const bytes_view *message, outbuf *out) except -1
    # 1: more to do; 0: done, answer in `out`.
    cdef int revoke_step(self, outbuf *out, int64_t keys_max) except -1
    cdef int checkpoint(self, const bytes_view *message) except -1

    # ---- calls. ERR_ id or OPS_MALFORMED ----

    # One LeaseKeepAliveResponse; also LEASE_WAITS, LEASE_NOT_PRIMARY. Answers of one stream must keep their order: a
    # stream whose message is parked takes no further one.
    cdef int keep_alive(self, const bytes_view *message, outbuf *out, int64_t now_ns) except -1
    # Also LEASE_NOT_PRIMARY.
    cdef int time_to_live(self, const bytes_view *message, outbuf *out, int64_t now_ns) except -1
    cdef int leases(self, outbuf *out) except -1
    # Lease ids whose parked askers are to be asked again, up to cap; call while settled_count is not 0.
    cdef int settled(self, int64_t *ids, int cap) noexcept nogil

    # ---- time ----

    # This member leads: all expiries from here on. O(n).
    cdef int promote(self, int64_t now_ns) except -1
    # It does not any more. As at promote, everybody who waits for a lease is settled, to ask again.
    cdef int demote(self) except -1
    # When due or checkpoints_due want to be called next, INT64_MAX for never; <= now: at once.
    cdef int64_t next_due_ns(self) noexcept nogil
    # Ids to propose a LeaseRevoke for. Call again in the next turn, whatever came.
    cdef int due(self, int64_t now_ns, int64_t *ids, int cap) noexcept nogil
    # A LeaseCheckpointRequest in `request` when it returns more than 0: how many leases it names.
    cdef int checkpoints_due(self, int64_t now_ns, outbuf *request) except -1

    cdef int store(self, lease_row *row, int64_t replaced, int64_t old_bytes) except -1
    cdef int finish_revoke(self, outbuf *out) except -1
    cdef int delete_keys(self, int64_t keys_max) except -1
    cdef int push_key(self, lease_key *key) except -1
    cdef lease_key *pop_key(self) noexcept nogil
    cdef int settle(self, lease_row *row) except -1
    cdef void take_back(self, lease_row *row) noexcept nogil
    cdef int plan_checkpoint(self, lease_row *row) except -1
    cdef int64_t effective_ttl(self, const lease_row *row) noexcept nogil
    cdef int64_t time_left(self, const lease_row *row) noexcept nogil
    cdef int reset(self) except -1
    cdef tuple answer_of(self, int status)
    cdef void made_view(self, bytes message, bytes_view *view) noexcept
