"""What each frame costs, accounted ahead of nghttp2, which has none of these limits in all its versions.

The guard sees the same bytes as nghttp2 and parses only frame headers: a few nanoseconds per frame.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.nghttp2 cimport (
    NGHTTP2_CONTINUATION, NGHTTP2_DATA, NGHTTP2_FLAG_END_HEADERS, NGHTTP2_FLAG_END_STREAM, NGHTTP2_HEADERS,
    NGHTTP2_RST_STREAM,
)

# Limits against abuse; breaking one ends the connection.
cdef enum:
    H2_HEADER_BYTES_MAX = 65536       # of one header list, HPACK expanded, 32 per field as RFC 9113 counts
    H2_CONTINUATIONS_MAX = 8          # 64 KiB of headers fit HEADERS + 4 frames of 16 KiB
    # Resets: a client may cancel 1000 calls at once and 100 a second for ever, and as many more as were answered.
    H2_RESET_BURST = 1000
    H2_RESET_PER_SECOND = 100
    # Frames that carry no call: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA, unknown types.
    H2_CONTROL_BURST = 4096
    H2_CONTROL_PER_SECOND = 1000
    H2_CONTROL_PER_ANSWER = 8
    H2_CONTROL_PER_DATA = 4           # frames that answer a DATA frame: window updates, pings


ctypedef struct h2_guard:
    uint8_t head[9]
    uint32_t have
    uint64_t skip              # payload bytes of the current frame still to come
    uint32_t preface_left
    bint framed                # the first frame header came
    bint in_block              # a header block is open
    bint block_ends            # the frame being skipped closes it
    uint64_t block_since_ns
    uint32_t continuations
    uint32_t block_bytes
    int64_t reset_tokens       # in thousandths
    int64_t control_tokens
    uint64_t refilled_ns
    uint64_t now_ns            # set by the owner before a scan


cdef inline void guard_refill(h2_guard *g) noexcept nogil:
    cdef uint64_t elapsed_ms = (g.now_ns - g.refilled_ns) // 1000000
    if elapsed_ms > 100000:
        elapsed_ms = 100000
    g.refilled_ns = g.now_ns
    g.reset_tokens = min(g.reset_tokens + <int64_t>elapsed_ms * H2_RESET_PER_SECOND, <int64_t>H2_RESET_BURST * 1000)
    g.control_tokens = min(g.control_tokens + <int64_t>elapsed_ms * H2_CONTROL_PER_SECOND,
                           <int64_t>H2_CONTROL_BURST * 1000)


cdef inline void guard_init(h2_guard *g, uint64_t now_ns) noexcept nogil:
    g.preface_left = 24
    g.refilled_ns = now_ns
    g.reset_tokens = <int64_t>H2_RESET_BURST * 1000
    g.control_tokens = <int64_t>H2_CONTROL_BURST * 1000


cdef inline bint guard_reset(h2_guard *g) noexcept nogil:
    """Pay for one stream reset. False when there were too many."""
    g.reset_tokens -= 1000
    if g.reset_tokens < 0:
        guard_refill(g)
    return g.reset_tokens >= 0


cdef inline void guard_answered(h2_guard *g) noexcept nogil:
    """Honest work pays for cancels and pings."""
    if g.reset_tokens < <int64_t>H2_RESET_BURST * 1000:
        g.reset_tokens += 1000
    if g.control_tokens < <int64_t>H2_CONTROL_BURST * 1000:
        g.control_tokens += H2_CONTROL_PER_ANSWER * 1000


cdef inline void guard_delivered(h2_guard *g) noexcept nogil:
    """A DATA frame went out: who reads has windows to open and round trips to measure, for as long as a watch lasts."""
    if g.control_tokens < <int64_t>H2_CONTROL_BURST * 1000:
        g.control_tokens += H2_CONTROL_PER_DATA * 1000


cdef inline const char *guard_frame(h2_guard *g, const uint8_t *head) noexcept nogil:
    """Account one frame header. NULL, or why the connection must end."""
    cdef uint32_t length = <uint32_t>head[0] << 16 | <uint32_t>head[1] << 8 | head[2]
    cdef uint8_t kind = head[3]
    cdef uint8_t flags = head[4]
    g.skip = length
    g.framed = True
    if kind == NGHTTP2_DATA:
        if length or flags & NGHTTP2_FLAG_END_STREAM:
            return NULL
    elif kind == NGHTTP2_HEADERS or kind == NGHTTP2_CONTINUATION:
        if kind == NGHTTP2_HEADERS:
            g.continuations = 0
            g.block_bytes = 0
            if not g.in_block:
                g.block_since_ns = g.now_ns
            g.in_block = True
        else:
            g.continuations += 1
        g.block_bytes += length
        g.block_ends = (flags & NGHTTP2_FLAG_END_HEADERS) != 0
        if g.continuations > H2_CONTINUATIONS_MAX:
            return b"too_many_continuations"
        if g.block_bytes > H2_HEADER_BYTES_MAX:
            return b"header_list_too_large"
        if length == 0 and g.block_ends:
            g.in_block = False
        return NULL
    elif kind == NGHTTP2_RST_STREAM:
        if guard_reset(g):
            return NULL
        return b"too_many_resets"
    g.control_tokens -= 1000
    if g.control_tokens < 0:
        guard_refill(g)
        if g.control_tokens < 0:
            return b"too_many_control_frames"
    return NULL


cdef inline const char *guard_scan(h2_guard *g, const uint8_t *data, uint32_t size) noexcept nogil:
    """Account the frames of these bytes. NULL, or why the connection must end (ENHANCE_YOUR_CALM)."""
    cdef const char *why
    cdef const uint8_t *pos = data
    cdef const uint8_t *end = data + size
    cdef uint64_t step
    while pos < end:
        if g.skip:
            step = <uint64_t>(end - pos)
            if step > g.skip:
                step = g.skip
            g.skip -= step
            pos += step
            if g.skip == 0 and g.in_block and g.block_ends:
                g.in_block = False
        elif g.preface_left:
            step = <uint64_t>(end - pos)
            if step > g.preface_left:
                step = g.preface_left
            g.preface_left -= <uint32_t>step
            pos += step
        elif g.have == 0 and end - pos >= 9:
            why = guard_frame(g, pos)
            if why != NULL:
                return why
            pos += 9
        else:
            g.head[g.have] = pos[0]
            g.have += 1
            pos += 1
            if g.have == 9:
                g.have = 0
                why = guard_frame(g, g.head)
                if why != NULL:
                    return why
    return NULL
