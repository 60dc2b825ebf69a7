"""The turn of the apply process: committed entries in, one RocksDB batch, answers, then reads.

One turn: take what is committed (bounded), apply it to index and batch, write the batch, only then
answer, then reads, calls, a slice of long reads, a step of compaction. Nothing here decides anything by
the clock but how long a slice is and when housekeeping is due.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.applymeters cimport apply_figures
from etcdfast._ext.authgate cimport AuthGate
from etcdfast._ext.kvops cimport KvOps
from etcdfast._ext.leaseclock cimport LeaseClock
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.longanswers cimport LongAnswers
from etcdfast._ext.longread cimport asker
from etcdfast._ext.outbox cimport FRONTENDS_MAX, Outbox
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.spin cimport spin_t
from etcdfast._ext.ring cimport Ring, StatusPage, ipc_record, ring_view
from etcdfast._ext.watchhub cimport WatchHub

cdef enum:
    TURN_RECORDS_MAX = 4096
    TURN_BYTES_MAX = 4194304
    TURN_ANSWER_BYTES_MAX = 2097152   # more answers than this end the turn's intake
    CALLS_MAX = 64                    # sliced cold calls under way; more are refused
    CANCELS_MAX = 4096                # cancelled streams whose read may still come through consensus
    SLICE_NS = 1000000                # of long reads per turn, and of history for watchers


cdef class ApplyLoop:
    cdef readonly Mvcc mvcc
    cdef readonly KvOps ops
    cdef readonly WatchHub hub
    cdef readonly LeaseClock leases
    cdef AuthGate gate
    cdef object services        # locks and elections
    cdef bint services_due      # they have something to go on with
    cdef object cold            # ColdPath, after start
    cdef object exports         # snapshot files
    cdef object meta_batch      # put and delete for cold entries
    cdef object compactor
    cdef object housekeeper     # callable(now_ns), at least every housekeeping_ns
    cdef int64_t housekeeping_ns
    cdef int64_t housekeeping_due
    cdef list rings             # keeps the Ring objects alive
    cdef ring_view *ca
    cdef ring_view *fa[FRONTENDS_MAX]
    cdef int frontends
    cdef Outbox out
    cdef void *own_page
    cdef void *consensus_page
    cdef object pages
    cdef readonly uint64_t applied_index
    cdef readonly uint64_t applied_term
    cdef readonly uint64_t stored_index   # of the applied record last written
    cdef spin_t spin
    cdef readonly uint64_t turns
    cdef uint64_t turns_kept    # the turn after the last housekeeping
    cdef readonly bint ready
    cdef bint stop_asked
    cdef public object aside     # called once, between two turns, and forgotten; None is nothing
    cdef apply_figures figures
    cdef outbuf answer          # the one being made
    cdef ipc_record *reads[TURN_RECORDS_MAX]
    cdef int reads_count
    cdef object deferred        # deque of reads as bytes, from turns that had no time for them
    cdef readonly LongAnswers answers
    cdef list calls             # [(generator, asker as bytes)]
    cdef dict cancels           # (frontend, slot, generation, stream), oldest first
    cdef bint revoking          # a lease's keys go, some per turn: no batch and no further entry until all have
    cdef asker revoke_asker
    cdef uint64_t revoke_index
    cdef uint64_t revoke_term

    cdef int turn(self) except -1
    cdef int take_committed(self) except -1
    cdef int apply_entry(self, ipc_record *r) except -1
    cdef int apply_cold(self, ipc_record *r) except -1
    cdef int apply_lease(self, int kind, const bytes_view *message, ipc_record *r) except -1
    cdef int go_on_revoking(self) except -1
    cdef int apply_compact(self, const bytes_view *message, ipc_record *r) except -1
    cdef int finish_batch(self) except -1
    cdef int tell_changes(self) except -1
    cdef int answer_own(self) except -1
    cdef int take_service(self, ipc_record *r) except -1
    cdef int run_reads(self) except -1
    cdef int run_read(self, ipc_record *r) except -1
    cdef int start_range(self, const bytes_view *message, ipc_record *r) except -1
    cdef int reply_cold(self, const asker *who, made) except -1
    cdef int take_calls(self) except -1
    cdef int take_call(self, ipc_record *r) except -1
    cdef int run_calls(self) except -1
    cdef int take_other(self, ipc_record *r) except -1
    # HARD: who leads has changed.
    cdef int lead(self, bint leads, uint64_t term) except -1
    cdef int answer_leases(self) except -1
    # Answer with what is in self.answer, or with an error.
    cdef int reply(self, const asker *who, int status) except -1
    cdef bint wait_awake(self) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef int sleep(self) except -1
