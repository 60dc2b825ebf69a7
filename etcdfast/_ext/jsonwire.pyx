"""JSON to and from protobuf wire bytes: see jsonwire.pyi.

Output goes in the order of the wire, which is that of the fields' numbers for all that this member encodes; the parts
of a repeated field come in a row.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from etcdfast._ext.grpcwire cimport GRPC_PREFIX_BYTES, put_be32
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MALFORMED, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next, wire_put_varint,
    wire_varint, wire_varint_size,
)

cdef enum:
    FIELDS_MAX = 72      # Compare.range_end is 64
    DEPTH_MAX = 100
    ENUM_MAX = 32

cdef enum:
    KIND_NONE = 0
    KIND_BYTES = 1
    KIND_STRING = 2
    KIND_BOOL = 3
    KIND_INT64 = 4
    KIND_UINT64 = 5
    KIND_INT32 = 6
    KIND_UINT32 = 7
    KIND_ENUM = 8
    KIND_MESSAGE = 9

import base64

KINDS = {"bytes": KIND_BYTES, "string": KIND_STRING, "bool": KIND_BOOL, "int64": KIND_INT64, "uint64": KIND_UINT64,
         "int32": KIND_INT32, "uint32": KIND_UINT32, "enum": KIND_ENUM, "message": KIND_MESSAGE}
GO_TYPES = {KIND_BYTES: "[]uint8", KIND_STRING: "string", KIND_BOOL: "bool", KIND_INT64: "int64",
            KIND_UINT64: "uint64", KIND_INT32: "int32", KIND_UINT32: "uint32", KIND_ENUM: "int32",
            KIND_MESSAGE: "map[string]json.RawMessage"}


class JsonError(ValueError):
    pass


class NumberText(str):
    """A number as it was written, where its text may have to be shown."""


ctypedef struct buffer_t:
    uint8_t *data
    size_t size
    size_t room
    bint failed            # out of memory


ctypedef struct field_t:
    int kind
    bint repeated
    const char *label      # "name": with its quotes and colon
    uint32_t label_size
    message_t *message
    const char *enum_text[ENUM_MAX]   # with quotes, NULL unknown
    uint32_t enum_size[ENUM_MAX]


ctypedef struct message_t:
    field_t fields[FIELDS_MAX]


cdef inline uint8_t *reserve(buffer_t *b, size_t more) noexcept nogil:
    """Where `more` bytes may be written; NULL out of memory."""
    cdef size_t room
    cdef uint8_t *grown
    if b.size + more > b.room:
        room = b.room * 2 if b.room else 1024
        if room < b.size + more:
            room = b.size + more
        grown = <uint8_t *>realloc(b.data, room)
        if grown == NULL:
            b.failed = True
            return NULL
        b.data = grown
        b.room = room
    return b.data + b.size


cdef inline void put(buffer_t *b, const void *data, size_t size) noexcept nogil:
    cdef uint8_t *at = reserve(b, size)
    if at != NULL:
        memcpy(at, data, size)
        b.size += size


cdef inline void put_char(buffer_t *b, uint8_t c) noexcept nogil:
    cdef uint8_t *at = reserve(b, 1)
    if at != NULL:
        at[0] = c
        b.size += 1


cdef const char *BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
cdef uint8_t FROM_BASE64[256]
memset(FROM_BASE64, 0xFF, 256)
for i in range(64):
    FROM_BASE64[<uint8_t>BASE64[i]] = i
FROM_BASE64[45] = 62   # -
FROM_BASE64[95] = 63   # _


# ---- wire to JSON

cdef void put_base64(buffer_t *b, const uint8_t *data, size_t size) noexcept nogil:
    cdef uint8_t *at = reserve(b, (size + 2) // 3 * 4 + 2)
    cdef size_t i = 0
    cdef uint32_t v
    if at == NULL:
        return
    at[0] = 34
    at += 1
    while i + 3 <= size:
        v = <uint32_t>data[i] << 16 | <uint32_t>data[i + 1] << 8 | data[i + 2]
        at[0] = BASE64[v >> 18]
        at[1] = BASE64[v >> 12 & 63]
        at[2] = BASE64[v >> 6 & 63]
        at[3] = BASE64[v & 63]
        at += 4
        i += 3
    if i < size:
        v = <uint32_t>data[i] << 16 | (<uint32_t>data[i + 1] << 8 if i + 1 < size else 0)
        at[0] = BASE64[v >> 18]
        at[1] = BASE64[v >> 12 & 63]
        at[2] = BASE64[v >> 6 & 63] if i + 1 < size else 61
        at[3] = 61
        at += 4
    at[0] = 34
    b.size = <size_t>(at + 1 - b.data)


cdef void put_text(buffer_t *b, const uint8_t *data, size_t size) noexcept nogil:
    """A string, escaped as Go does it: also what HTML would take for markup."""
    cdef const char *hexes = b"0123456789abcdef"
    cdef size_t i
    cdef uint8_t c
    cdef uint8_t *at
    put_char(b, 34)
    for i in range(size):
        c = data[i]
        at = reserve(b, 6)
        if at == NULL:
            return
        if c == 34 or c == 92:
            at[0] = 92
            at[1] = c
            b.size += 2
        elif c == 10 or c == 13 or c == 9:
            at[0] = 92
            at[1] = 110 if c == 10 else 114 if c == 13 else 116
            b.size += 2
        elif c < 32 or c == 60 or c == 62 or c == 38:
            memcpy(at, b"\\u00", 4)
            at[4] = hexes[c >> 4]
            at[5] = hexes[c & 15]
            b.size += 6
        else:
            at[0] = c
            b.size += 1
    put_char(b, 34)


cdef void put_number(buffer_t *b, uint64_t value, bint negative) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int n = 20
    if negative:
        put_char(b, 45)
        value = 0 - value
    while True:
        n -= 1
        digits[n] = <uint8_t>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    put(b, digits + n, 20 - n)


cdef void put_scalar(buffer_t *b, field_t *f, uint64_t value) noexcept nogil:
    cdef int64_t narrow
    if f.kind == KIND_BOOL:
        if value:
            put(b, b"true", 4)
        else:
            put(b, b"false", 5)
    elif f.kind == KIND_INT64 or f.kind == KIND_UINT64:
        put_char(b, 34)
        put_number(b, value, f.kind == KIND_INT64 and <int64_t>value < 0)
        put_char(b, 34)
    elif f.kind == KIND_UINT32:
        put_number(b, value & 0xFFFFFFFFu, False)
    elif f.kind == KIND_ENUM and value < ENUM_MAX and f.enum_text[value] != NULL:
        put(b, f.enum_text[value], f.enum_size[value])
    else:
        narrow = <int64_t>value
        put_number(b, value, narrow < 0)


cdef int put_message(buffer_t *b, message_t *m, const uint8_t *data, size_t size, int depth) noexcept nogil:
    cdef wire_cursor c
    cdef wire_cursor packed
    cdef wire_field w
    cdef field_t *f
    cdef uint32_t row = 0          # number of the repeated field whose bracket is open
    cdef bint first = True
    cdef uint64_t value
    cdef int rc
    if depth > DEPTH_MAX:
        return -1
    c.pos = data
    c.end = data + size
    put_char(b, 123)
    while True:
        rc = wire_next(&c, &w)
        if rc != WIRE_MORE:
            break
        if w.number >= FIELDS_MAX:
            continue
        f = &m.fields[w.number]
        if f.kind == KIND_NONE:
            continue
        if f.kind in (KIND_BYTES, KIND_STRING, KIND_MESSAGE):
            if w.type != WIRE_BYTES:
                return -1
            if w.size == 0 and not f.repeated and f.kind != KIND_MESSAGE:
                continue
        elif w.type == WIRE_VARINT:
            if w.value == 0 and not f.repeated:
                continue
        elif not (f.repeated and w.type == WIRE_BYTES):
            return -1
        if not (f.repeated and row == w.number):
            if row:
                put_char(b, 93)
                row = 0
            if not first:
                put_char(b, 44)
            first = False
            put(b, f.label, f.label_size)
            if f.repeated:
                put_char(b, 91)
                row = w.number
        else:
            put_char(b, 44)
        if f.kind == KIND_BYTES:
            put_base64(b, w.data, w.size)
        elif f.kind == KIND_STRING:
            put_text(b, w.data, w.size)
        elif f.kind == KIND_MESSAGE:
            if put_message(b, f.message, w.data, w.size, depth + 1) < 0:
                return -1
        elif w.type == WIRE_VARINT:
            put_scalar(b, f, w.value)
        else:
            packed.pos = w.data
            packed.end = w.data + w.size
            while packed.pos < packed.end:
                if wire_varint(&packed, &value) != WIRE_MORE:
                    return -1
                if packed.pos != w.data and b.data[b.size - 1] != 91:
                    put_char(b, 44)
                put_scalar(b, f, value)
    if row:
        put_char(b, 93)
    put_char(b, 125)
    return 0 if rc == WIRE_END else -1


# ---- JSON to wire

cdef str json_kind(value):
    if value is None:
        return "null"
    if value is True or value is False:
        return "bool"
    if isinstance(value, (int, float, NumberText)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


cdef mismatch(value, go_type):
    return JsonError(f"json: cannot unmarshal {json_kind(value)} into Go value of type {go_type}")


cdef int put_from_base64(buffer_t *b, str text) except -1:
    cdef Py_ssize_t size
    cdef const uint8_t *data = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &size)
    cdef uint8_t *at = reserve(b, <size_t>size // 4 * 3 + 3)
    cdef uint32_t bits = 0
    cdef Py_ssize_t have = 0
    cdef Py_ssize_t pads = 0
    cdef Py_ssize_t i
    cdef uint8_t v
    if at == NULL:
        raise MemoryError
    for i in range(size):
        v = FROM_BASE64[data[i]]
        if v == 0xFF:
            if data[i] == 10 or data[i] == 13:
                continue
            if data[i] != 61 or have % 4 < 2:
                raise JsonError(f"illegal base64 data at input byte {i}")
            pads += 1
            continue
        if pads:
            raise JsonError(f"illegal base64 data at input byte {i - 1 if (have + pads) % 4 else i}")
        bits = bits << 6 | v
        have += 1
        if have % 4 == 0:
            at[0] = <uint8_t>(bits >> 16)
            at[1] = <uint8_t>(bits >> 8)
            at[2] = <uint8_t>bits
            at += 3
    if have % 4 == 1 or (pads and (have + pads) % 4):
        raise JsonError(f"illegal base64 data at input byte {size if pads else size - 1}")
    if have % 4 == 2:
        at[0] = <uint8_t>(bits >> 4)
        at += 1
    elif have % 4 == 3:
        at[0] = <uint8_t>(bits >> 10)
        at[1] = <uint8_t>(bits >> 2)
        at += 2
    b.size = <size_t>(at - b.data)
    return 0


cdef class JsonField:
    cdef uint32_t number
    cdef int kind
    cdef bint repeated
    cdef JsonPlan plan
    cdef dict enum_values
    cdef str enum_name


cdef object number_of(value, int kind):
    """An int of the field's range. Errors: JsonError."""
    go_type = GO_TYPES[kind]
    if isinstance(value, str):
        text = str(value)
        try:
            # Only digits, as JSON has them.
            if not (text.lstrip("-").isdecimal() and text.isascii() and text.count("-") <= 1):
                raise ValueError
            if len(text.lstrip("-")) > 1 and text.lstrip("-")[0] == "0":
                raise ValueError
            number = int(text)
        except ValueError:
            if isinstance(value, NumberText):
                raise JsonError(f"json: cannot unmarshal number {text} into Go value of type {go_type}") from None
            number = slow_number(text, go_type)
    elif value is True or value is False or not isinstance(value, int):
        if isinstance(value, float):
            raise JsonError(f"json: cannot unmarshal number {value} into Go value of type {go_type}")
        raise mismatch(value, go_type)
    else:
        number = value
    if kind == KIND_INT64:
        fits = -0x8000000000000000 <= number < 0x8000000000000000
    elif kind == KIND_UINT64:
        fits = 0 <= number <= 0xFFFFFFFFFFFFFFFF
    elif kind == KIND_UINT32:
        fits = 0 <= number <= 0xFFFFFFFF
    else:
        fits = -0x80000000 <= number < 0x80000000
    if not fits:
        raise JsonError(f"json: cannot unmarshal number {number} into Go value of type {go_type}")
    return number & 0xFFFFFFFFFFFFFFFF


def slow_number(text, go_type):
    """The number in a string that is not just digits; the gateway puts its own in this place."""
    raise JsonError(f"invalid number {text!r}")


cdef str text_of_bytes(list value):
    """Bytes written as an array of numbers, which Go takes too."""
    for item in value:
        if item is True or item is False or not isinstance(item, int):
            raise mismatch(item, "uint8")
        if not 0 <= item <= 255:
            raise JsonError(f"json: cannot unmarshal number {item} into Go value of type uint8")
    return base64.b64encode(bytes(value)).decode()


cdef put_varint(buffer_t *b, uint64_t value):
    cdef uint8_t *at = reserve(b, 10)
    if at == NULL:
        raise MemoryError
    b.size = <size_t>(wire_put_varint(at, value) - b.data)


cdef put_sized(buffer_t *b, size_t start):
    """The length of what was written since `start`, before it."""
    cdef size_t size = b.size - start
    cdef size_t shift = wire_varint_size(size)
    if reserve(b, shift) == NULL:
        raise MemoryError
    memmove(b.data + start + shift, b.data + start, size)
    wire_put_varint(b.data + start, size)
    b.size += shift


cdef put_value(buffer_t *b, JsonField f, value, int depth):
    """One value of the field, tag included; zeros too, which mean something in a oneof."""
    cdef size_t start
    cdef Py_ssize_t size
    cdef const char *text
    if f.kind == KIND_MESSAGE:
        put_varint(b, <uint64_t>f.number << 3 | WIRE_BYTES)
        start = b.size
        put_object(b, f.plan, value, depth + 1)
        put_sized(b, start)
    elif f.kind == KIND_BYTES or f.kind == KIND_STRING:
        if f.kind == KIND_BYTES and isinstance(value, list):
            value = text_of_bytes(value)
        if not isinstance(value, str) or isinstance(value, NumberText):
            raise mismatch(value, GO_TYPES[f.kind])
        put_varint(b, <uint64_t>f.number << 3 | WIRE_BYTES)
        start = b.size
        if f.kind == KIND_BYTES:
            put_from_base64(b, value)
        else:
            text = PyUnicode_AsUTF8AndSize(value, &size)
            put(b, text, <size_t>size)
        put_sized(b, start)
    else:
        put_varint(b, <uint64_t>f.number << 3 | WIRE_VARINT)
        if f.kind == KIND_BOOL:
            if value is not True and value is not False:
                raise mismatch(value, "bool")
            put_varint(b, 1 if value else 0)
        elif f.kind == KIND_ENUM and isinstance(value, str) and not isinstance(value, NumberText):
            number = f.enum_values.get(value)
            if number is None:
                shown = '"\\"' + value + '\\""'
                raise JsonError(f"unknown value {shown} for enum {f.enum_name}")
            put_varint(b, number)
        else:
            put_varint(b, number_of(value, f.kind))
    if b.failed:
        raise MemoryError


cdef put_object(buffer_t *b, JsonPlan plan, value, int depth):
    cdef JsonField f
    if not isinstance(value, dict):
        raise mismatch(value, "map[string]json.RawMessage")
    if depth > DEPTH_MAX:
        raise JsonError("exceeded max depth")
    for name, member in (<dict>value).items():
        found = plan.by_name.get(name)
        if found is None or member is None:
            continue
        f = <JsonField>found
        if not f.repeated:
            put_value(b, f, member, depth)
            continue
        if not isinstance(member, list):
            raise mismatch(member, "[]json.RawMessage")
        for item in <list>member:
            put_value(b, f, item, depth)


cdef class JsonPlan:
    cdef message_t *message
    cdef readonly str name
    cdef dict by_name
    cdef list kept       # what the C structure points into, and plans

    def __cinit__(self):
        self.message = <message_t *>malloc(sizeof(message_t))
        if self.message == NULL:
            raise MemoryError
        memset(self.message, 0, sizeof(message_t))

    def __init__(self, str name):
        self.name = name
        self.by_name = {}
        self.kept = []

    def __dealloc__(self):
        free(self.message)

    def add(self, uint32_t number, str name, str kind, bint repeated=False, JsonPlan message=None, enum=None,
            str enum_name="", aliases=()):
        cdef field_t *c
        cdef JsonField f = JsonField()
        if not 0 < number < FIELDS_MAX:
            raise ValueError(f"field number {number} of {self.name} is out of range")
        c = &self.message.fields[number]
        f.number = number
        f.kind = c.kind = KINDS[kind]
        f.repeated = c.repeated = repeated
        f.plan = message
        if message is not None:
            c.message = message.message
            self.kept.append(message)
        label = f'"{name}":'.encode()
        self.kept.append(label)
        c.label = PyBytes_AS_STRING(label)
        c.label_size = <uint32_t>len(label)
        if enum is not None:
            f.enum_values = {text: value for value, text in enum.items()}
            f.enum_name = enum_name
            for value, text in enum.items():
                shown = f'"{text}"'.encode()
                self.kept.append(shown)
                if 0 <= value < ENUM_MAX:
                    c.enum_text[<int>value] = PyBytes_AS_STRING(shown)
                    c.enum_size[<int>value] = <uint32_t>len(shown)
        for alias in (name, *aliases):
            self.by_name[alias] = f

    def to_json(self, bytes wire not None, Py_ssize_t start=0, bytes before not None=b"", bytes after not None=b""):
        cdef buffer_t b
        cdef int rc
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(wire)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(wire)
        cdef const char *head = PyBytes_AS_STRING(before)
        cdef const char *tail = PyBytes_AS_STRING(after)
        cdef Py_ssize_t head_size = PyBytes_GET_SIZE(before)
        cdef Py_ssize_t tail_size = PyBytes_GET_SIZE(after)
        if not 0 <= start <= size:
            raise ValueError("start is out of range")
        memset(&b, 0, sizeof(b))
        with nogil:
            reserve(&b, <size_t>(size - start) * 2 + 256)
            put(&b, head, <size_t>head_size)
            rc = put_message(&b, self.message, data + start, <size_t>(size - start), 0)
            put(&b, tail, <size_t>tail_size)
        try:
            if b.failed:
                raise MemoryError
            if rc < 0:
                raise ValueError(f"a malformed {self.name}")
            return PyBytes_FromStringAndSize(<char *>b.data, <Py_ssize_t>b.size)
        finally:
            free(b.data)

    def to_frame(self, value):
        cdef buffer_t b
        memset(&b, 0, sizeof(b))
        try:
            if reserve(&b, GRPC_PREFIX_BYTES) == NULL:
                raise MemoryError
            b.size = GRPC_PREFIX_BYTES
            put_object(&b, self, value, 0)
            b.data[0] = 0
            put_be32(b.data + 1, <uint32_t>(b.size - GRPC_PREFIX_BYTES))
            return PyBytes_FromStringAndSize(<char *>b.data, <Py_ssize_t>b.size)
        finally:
            free(b.data)
