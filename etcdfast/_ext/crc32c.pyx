"""CRC-32C: SSE4.2 or ARMv8 instructions where the processor has them, slicing by eight where not."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define CRC32C_POLYNOMIAL 0x82F63B78u   /* reflected Castagnoli */

    typedef uint32_t (*crc32c_path)(uint32_t crc, const void *data, size_t size);

    static uint32_t crc32c_table[8][256];

    static void crc32c_make_tables(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = (c >> 1) ^ (CRC32C_POLYNOMIAL & (0u - (c & 1)));
            crc32c_table[0][i] = c;
        }
        for (uint32_t i = 0; i < 256; i++)
            for (int slice = 1; slice < 8; slice++)
                crc32c_table[slice][i] = (crc32c_table[slice - 1][i] >> 8)
                    ^ crc32c_table[0][crc32c_table[slice - 1][i] & 0xff];
    }

    static uint32_t crc32c_slicing(uint32_t crc, const void *data, size_t size) {
        const uint8_t *p = (const uint8_t *)data;
        uint32_t c = ~crc;
        for (; size >= 8; size -= 8, p += 8) {
            uint32_t low = c ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
            c = crc32c_table[7][low & 0xff] ^ crc32c_table[6][(low >> 8) & 0xff]
              ^ crc32c_table[5][(low >> 16) & 0xff] ^ crc32c_table[4][low >> 24]
              ^ crc32c_table[3][p[4]] ^ crc32c_table[2][p[5]]
              ^ crc32c_table[1][p[6]] ^ crc32c_table[0][p[7]];
        }
        for (; size; size--, p++)
            c = (c >> 8) ^ crc32c_table[0][(c ^ *p) & 0xff];
        return ~c;
    }

    static crc32c_path crc32c_best = crc32c_slicing;
    static const char *crc32c_name = "portable";

    #if defined(__x86_64__)
    #include <immintrin.h>

    /* The crc32 instruction has a latency of three cycles and a throughput of one: three independent streams
     * keep it busy. Their results are joined by moving the earlier ones forward over the later streams' bytes,
     * which is a carry-less multiplication by x^(8n-33) (the instruction that reduces the 64-bit product adds
     * the missing x^33: 32 from its own shift, 1 from the bit-reflected product). */
    #define CRC32C_LONG 1024u
    #define CRC32C_SHORT 64u

    static uint32_t crc32c_over_long, crc32c_over_two_long, crc32c_over_short, crc32c_over_two_short;

    static uint32_t crc32c_power(size_t exponent) {   /* x^exponent mod P, bit-reflected */
        uint32_t v = 0x80000000u;
        while (exponent--)
            v = (v >> 1) ^ (CRC32C_POLYNOMIAL & (0u - (v & 1)));
        return v;
    }

    __attribute__((target("sse4.2,pclmul")))
    static inline uint64_t crc32c_forward(uint64_t crc, uint32_t power) {
        __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc),
                                               _mm_cvtsi32_si128((int)power), 0);
        return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
    }

    static inline uint64_t crc32c_load(const uint8_t *p) {
        uint64_t v;
        memcpy(&v, p, 8);
        return v;
    }

    __attribute__((target("sse4.2,pclmul")))
    static inline uint64_t crc32c_three(uint64_t c, const uint8_t *p, size_t stream, uint32_t one, uint32_t two) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < stream; i += 8) {
            c = _mm_crc32_u64(c, crc32c_load(p + i));
            second = _mm_crc32_u64(second, crc32c_load(p + stream + i));
            third = _mm_crc32_u64(third, crc32c_load(p + 2 * stream + i));
        }
        return crc32c_forward(c, two) ^ crc32c_forward(second, one) ^ third;
    }

    __attribute__((target("sse4.2,pclmul")))
    static uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t size) {
        const uint8_t *p = (const uint8_t *)data;
        uint64_t c = (uint32_t)~crc;
        for (; size >= 3 * CRC32C_LONG; size -= 3 * CRC32C_LONG, p += 3 * CRC32C_LONG)
            c = crc32c_three(c, p, CRC32C_LONG, crc32c_over_long, crc32c_over_two_long);
        for (; size >= 3 * CRC32C_SHORT; size -= 3 * CRC32C_SHORT, p += 3 * CRC32C_SHORT)
            c = crc32c_three(c, p, CRC32C_SHORT, crc32c_over_short, crc32c_over_two_short);
        for (; size >= 8; size -= 8, p += 8)
            c = _mm_crc32_u64(c, crc32c_load(p));
        for (; size; size--, p++)
            c = _mm_crc32_u8((uint32_t)c, *p);
        return ~(uint32_t)c;
    }

    static void crc32c_choose(void) {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
            crc32c_over_long = crc32c_power(8 * CRC32C_LONG - 33);
            crc32c_over_two_long = crc32c_power(16 * CRC32C_LONG - 33);
            crc32c_over_short = crc32c_power(8 * CRC32C_SHORT - 33);
            crc32c_over_two_short = crc32c_power(16 * CRC32C_SHORT - 33);
            crc32c_best = crc32c_sse42;
            crc32c_name = "sse4.2";
        }
    }

    #elif defined(__aarch64__) && defined(__linux__)
    #include <sys/auxv.h>
    #include <asm/hwcap.h>

    __attribute__((target("+crc")))
    static uint32_t crc32c_armv8(uint32_t crc, const void *data, size_t size) {
        const uint8_t *p = (const uint8_t *)data;
        uint32_t c = ~crc;
        for (; size >= 8; size -= 8, p += 8) {
            uint64_t v;
            memcpy(&v, p, 8);
            c = __builtin_aarch64_crc32cx(c, v);
        }
        for (; size; size--, p++)
            c = __builtin_aarch64_crc32cb(c, *p);
        return ~c;
    }

    static void crc32c_choose(void) {
        if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
            crc32c_best = crc32c_armv8;
            crc32c_name = "armv8";
        }
    }

    #else
    static void crc32c_choose(void) {}
    #endif
    """
    void crc32c_make_tables() noexcept nogil
    void crc32c_choose() noexcept nogil
    uint32_t crc32c_slicing(uint32_t crc, const void *data, size_t size) noexcept nogil
    uint32_t crc32c_best(uint32_t crc, const void *data, size_t size) noexcept nogil
    const char *crc32c_name

crc32c_make_tables()
crc32c_choose()


cdef uint32_t crc32c_update(uint32_t crc, const void *data, size_t size) noexcept nogil:
    return crc32c_best(crc, data, size)


cdef uint32_t crc32c_update_portable(uint32_t crc, const void *data, size_t size) noexcept nogil:
    return crc32c_slicing(crc, data, size)


def update(uint32_t crc, const uint8_t[::1] data not None):
    """Checksum of what `crc` covers followed by `data` (0 starts a new one)."""
    return crc32c_best(crc, &data[0] if data.shape[0] else NULL, <size_t>data.shape[0])


def update_portable(uint32_t crc, const uint8_t[::1] data not None):
    """The same by the portable path, whatever the processor offers."""
    return crc32c_slicing(crc, &data[0] if data.shape[0] else NULL, <size_t>data.shape[0])


def implementation():
    """Name of the path in use: "sse4.2", "armv8" or "portable"."""
    return crc32c_name.decode("ascii")
