"""What a request of the Auth service must be like to enter the log: protobuf, and its texts UTF-8.

Text that is none would be refused by every reader behind the log that uses a protobuf runtime, so it must not get there.
Nor must a name that is too long to be a key of a bbolt file: no snapshot of the member could be made any more (etcd ends
itself for it).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from etcdfast._ext.errids cimport ERR_REQUEST_TOO_LARGE
from etcdfast._ext.rpcids cimport (
    RPC_AUTH_ENABLE, RPC_AUTHENTICATE, RPC_ROLE_ADD, RPC_ROLE_GRANT_PERMISSION, RPC_ROLE_REVOKE_PERMISSION, RPC_USER_ADD,
    RPC_USER_CHANGE_PASSWORD, RPC_USER_GRANT_ROLE, RPC_USER_REVOKE_ROLE,
)
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_END, WIRE_MORE, wire_cursor, wire_field, wire_next

cdef enum:
    AUTH_KEY_BYTES_MAX = 32768   # of a key in bbolt


cdef inline bint is_auth_method(int method) noexcept nogil:
    return RPC_AUTH_ENABLE <= method <= RPC_ROLE_REVOKE_PERMISSION


cdef inline bint is_utf8(const uint8_t *data, uint64_t size) noexcept nogil:
    """Whether it is well-formed: neither overlong, nor a surrogate, nor beyond U+10FFFF."""
    cdef uint64_t i = 0
    cdef uint64_t more
    cdef uint32_t low, high
    while i < size:
        if data[i] < 0x80:
            i += 1
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= data[i] <= 0xDF:
            more = 1
        elif 0xE0 <= data[i] <= 0xEF:
            more = 2
            if data[i] == 0xE0:
                low = 0xA0
            elif data[i] == 0xED:
                high = 0x9F
        elif 0xF0 <= data[i] <= 0xF4:
            more = 3
            if data[i] == 0xF0:
                low = 0x90
            elif data[i] == 0xF4:
                high = 0x8F
        else:
            return False
        if more > size - i - 1 or not low <= data[i + 1] <= high:
            return False
        i += 2
        more -= 1
        while more:
            if data[i] & 0xC0 != 0x80:
                return False
            i += 1
            more -= 1
    return True


cdef inline int check_auth(int method, const uint8_t *data, uint64_t size) noexcept nogil:
    """0, -1 malformed, or an ERR_ id. Precondition: is_auth_method(method)."""
    cdef wire_cursor c, inner
    cdef wire_field f, g
    cdef uint32_t texts = 1 << 1
    cdef uint32_t messages = 0
    cdef int more
    cdef int error = 0
    if method == RPC_AUTHENTICATE or method == RPC_USER_GRANT_ROLE or method == RPC_USER_REVOKE_ROLE:
        texts = 1 << 1 | 1 << 2
    elif method == RPC_USER_CHANGE_PASSWORD:
        texts = 1 << 1 | 1 << 2 | 1 << 3
    elif method == RPC_USER_ADD:
        texts = 1 << 1 | 1 << 2 | 1 << 4
        messages = 1 << 3
    elif method == RPC_ROLE_GRANT_PERMISSION:
        messages = 1 << 2
    c.pos = data
    c.end = data + size
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return error if more == WIRE_END else -1
        if f.type != WIRE_BYTES or f.number > 4:
            continue
        if f.number == 1 and f.size > AUTH_KEY_BYTES_MAX and (method == RPC_USER_ADD or method == RPC_ROLE_ADD):
            error = ERR_REQUEST_TOO_LARGE
        if texts >> f.number & 1 and not is_utf8(f.data, f.size):
            return -1
        if messages >> f.number & 1:
            inner.pos = f.data
            inner.end = f.data + f.size
            while True:
                more = wire_next(&inner, &g)
                if more != WIRE_MORE:
                    break
            if more != WIRE_END:
                return -1
