# What a run counts: latencies by histogram and by second, failures by code and text.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from etcdfast._ext.loadtypes cimport (
    ERROR_TEXT_BYTES, ERRORS_MAX, GRPC_UNKNOWN, SECONDS_MAX, TIMELINE_BIN_NS, TIMELINE_BINS, Client, ErrorRow,
    Histogram, Load, Second, bucket_of,
)


cdef inline void record_span(Load* g, uint32_t kind, int64_t start_ns, int64_t end_ns) noexcept nogil:
    cdef Histogram* h = &g.histograms[kind]
    cdef uint64_t latency_ns = <uint64_t>(end_ns - start_ns)
    cdef double latency = <double>latency_ns * 1e-9
    cdef int64_t second
    cdef Second* s
    h.count += 1
    h.sum_ns += latency_ns
    h.sum_squares += latency * latency
    h.buckets[bucket_of(latency_ns)] += 1
    if latency_ns < h.min_ns:
        h.min_ns = latency_ns
    if latency_ns > h.max_ns:
        h.max_ns = latency_ns
    second = (start_ns + g.unix_offset_ns) // 1000000000 - g.start_unix_second
    if second < 0:
        second = 0
    if second >= SECONDS_MAX:
        second = SECONDS_MAX - 1
    s = &g.seconds[<int64_t>kind * SECONDS_MAX + second]
    if s.count == 0 or latency_ns < s.min_ns:
        s.min_ns = latency_ns
    if latency_ns > s.max_ns:
        s.max_ns = latency_ns
    s.count += 1
    s.sum_ns += latency_ns


cdef inline void record_latency(Load* g, Client* client, int64_t now) noexcept nogil:
    cdef int64_t bin
    record_span(g, client.kind, client.start_ns, now)
    if g.start_ns:
        bin = (now - g.start_ns) // TIMELINE_BIN_NS
        if bin < TIMELINE_BINS:
            g.timeline[bin] += 1


cdef inline void count_error(Load* g, int32_t code, const uint8_t* text, size_t text_bytes) noexcept nogil:
    cdef uint32_t i
    cdef ErrorRow* row
    if text_bytes > ERROR_TEXT_BYTES:
        text_bytes = ERROR_TEXT_BYTES
    for i in range(g.error_count):
        row = &g.errors[i]
        if row.code == code and row.text_bytes == text_bytes and memcmp(row.text, text, text_bytes) == 0:
            row.count += 1
            return
    if g.error_count == ERRORS_MAX:
        g.errors[ERRORS_MAX - 1].count += 1
        return
    row = &g.errors[g.error_count]
    g.error_count += 1
    row.count = 1
    row.code = code
    if g.error_count == ERRORS_MAX:
        row.code = GRPC_UNKNOWN
        row.text_bytes = <uint32_t>snprintf(<char*>row.text, ERROR_TEXT_BYTES, "(further distinct errors)")
        return
    row.text_bytes = <uint32_t>text_bytes
    memcpy(row.text, text, text_bytes)
