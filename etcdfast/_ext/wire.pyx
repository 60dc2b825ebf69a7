"""Python face of the protobuf wire functions: for tests and tools; hot code uses wire.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t


class WireError(ValueError):
    """The bytes are no protobuf message."""


def fields(bytes message not None):
    """The fields of a message as a list of (number, wire type, int or bytes).

    Errors: WireError when a field is cut short, has number 0, or is a group.
    """
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    c.pos = <const uint8_t *>PyBytes_AS_STRING(message)
    c.end = c.pos + len(message)
    found = []
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return found
        if rc < 0:
            raise WireError(f"malformed protobuf after {len(found)} fields")
        if f.type == WIRE_BYTES:
            found.append((f.number, f.type, PyBytes_FromStringAndSize(<const char *>f.data, <Py_ssize_t>f.size)))
        else:
            found.append((f.number, f.type, f.value))


def varint(uint64_t value):
    """The varint bytes of a 64-bit number."""
    cdef uint8_t[10] room
    cdef uint8_t *end = wire_put_varint(room, value)
    return PyBytes_FromStringAndSize(<const char *>room, end - room)
