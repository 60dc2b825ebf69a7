"""What the turns of apply add to the figures: entries and ranges are counted one by one and timed together, for a look
at the clock takes as long as a put. Each is taken to have lasted its share of the turn."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.meters cimport (
    H_RANGE_FAILED, H_RANGE_OK, H_STAGE_APPLY, M_RANGES, M_SLOW_APPLIES, OP_APPLY_OTHER, meter_applied, meter_count,
    meter_observe, meter_observe_n, meters_block,
)

cdef enum:
    SLOW_APPLY_NS = 100000000  # etcd's --warning-apply-duration

ctypedef struct apply_figures:
    int64_t turn_ns             # when the turn began
    uint32_t entries
    uint32_t by_op[2 * (OP_APPLY_OTHER + 1)]  # those entries, by OP_APPLY_* and failure
    uint32_t ranges[2]          # since they were last counted: done, refused


cdef inline void figures_entry(apply_figures *f, int op, bint failed) noexcept nogil:
    f.entries += 1
    f.by_op[2 * op + failed] += 1


cdef inline void figures_turn(apply_figures *f) noexcept nogil:
    """The turn's entries are answered."""
    cdef uint64_t took, each
    cdef uint32_t i
    if f.entries == 0:
        return
    took = <uint64_t>(now_ns() - f.turn_ns)
    each = took // f.entries
    meter_observe(H_STAGE_APPLY, took)
    if each > SLOW_APPLY_NS:
        meter_count(M_SLOW_APPLIES, f.entries)
    for i in range(2 * (OP_APPLY_OTHER + 1)):
        if f.by_op[i]:
            meter_applied(meters_block, i >> 1, i & 1, each, f.by_op[i])
            f.by_op[i] = 0
    f.entries = 0


cdef inline void figures_ranges(apply_figures *f, int64_t began_ns) noexcept nogil:
    """The ranges since then; of one that goes on in slices the first counts."""
    cdef uint64_t count = f.ranges[0] + f.ranges[1]
    cdef uint64_t each
    if count == 0:
        return
    each = <uint64_t>(now_ns() - began_ns) // count
    meter_count(M_RANGES, count)
    if f.ranges[0]:
        meter_observe_n(meters_block, H_RANGE_OK, each, f.ranges[0])
    if f.ranges[1]:
        meter_observe_n(meters_block, H_RANGE_FAILED, each, f.ranges[1])
    f.ranges[0] = f.ranges[1] = 0
