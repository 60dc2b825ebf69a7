"""Small codecs of gRPC over HTTP/2 that need no state: timeouts, percent encoding, numbers as text."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_INVALID_ARGUMENT = 3
    GRPC_DEADLINE_EXCEEDED = 4
    GRPC_NOT_FOUND = 5
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14
    GRPC_CODE_MAX = 16

cdef enum:
    GRPC_PREFIX_BYTES = 5


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 24 | <uint32_t>p[1] << 16 | <uint32_t>p[2] << 8 | p[3]


cdef inline void put_be32(uint8_t *p, uint32_t n) noexcept nogil:
    p[0] = <uint8_t>(n >> 24)
    p[1] = <uint8_t>(n >> 16)
    p[2] = <uint8_t>(n >> 8)
    p[3] = <uint8_t>n


cdef inline int grpc_timeout_ns(const uint8_t *value, size_t size, uint64_t *out) noexcept nogil:
    """`grpc-timeout`: 1 to 8 digits and a unit. 0, or -1 when malformed. At most 8 digits of hours fit 64 bits of ns
    only up to 292 years, so longer ones are cut there."""
    cdef uint64_t n = 0
    cdef uint64_t unit
    cdef size_t i
    if size < 2 or size > 9:
        return -1
    for i in range(size - 1):
        if not 48 <= value[i] <= 57:
            return -1
        n = n * 10 + (value[i] - 48)
    if value[size - 1] == 110:      # n
        unit = 1
    elif value[size - 1] == 117:    # u
        unit = 1000
    elif value[size - 1] == 109:    # m
        unit = 1000000
    elif value[size - 1] == 83:     # S
        unit = 1000000000
    elif value[size - 1] == 77:     # M
        unit = 60000000000u
    elif value[size - 1] == 72:     # H
        unit = 3600000000000u
    else:
        return -1
    out[0] = n * unit if n < 0x7FFFFFFFFFFFFFFFu // unit else 0x7FFFFFFFFFFFFFFFu
    return 0


cdef inline size_t grpc_percent_encode(uint8_t *out, const uint8_t *text, size_t size) noexcept nogil:
    """Bytes outside 0x20..0x7e and '%' as %XX. `out` holds 3 x size bytes; the result is how many are used."""
    cdef const char *digits = "0123456789ABCDEF"
    cdef size_t n = 0
    cdef size_t i
    for i in range(size):
        if 0x20 <= text[i] <= 0x7e and text[i] != 37:
            out[n] = text[i]
            n += 1
        else:
            out[n] = 37
            out[n + 1] = <uint8_t>digits[text[i] >> 4]
            out[n + 2] = <uint8_t>digits[text[i] & 15]
            n += 3
    return n


cdef inline size_t decimal(uint8_t *out, uint64_t n) noexcept nogil:
    """The number in digits; `out` holds 20 bytes."""
    cdef uint8_t back[20]
    cdef size_t used = 0
    cdef size_t i
    while True:
        back[used] = <uint8_t>(48 + n % 10)
        used += 1
        n //= 10
        if n == 0:
            break
    for i in range(used):
        out[i] = back[used - 1 - i]
    return used
