"""Walking whole logs: segment after segment, into rows of entries and the few facts a start-up needs."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from etcdfast._ext.walrec cimport (
    WALREC_BAD_CRC,
    WALREC_BAD_DATA,
    WALREC_BAD_LENGTH,
    WALREC_BAD_ORDER,
    WALREC_BAD_RECORD,
    WALREC_CONFLICT,
    WALREC_CRC,
    WALREC_END,
    WALREC_ENTRY,
    WALREC_GAP,
    WALREC_LOST,
    WALREC_METADATA,
    WALREC_NO_MEMORY,
    WALREC_OK,
    WALREC_SNAPSHOT,
    WALREC_STATE,
    WALREC_TORN,
    walrec_entry,
    walrec_frame,
    walrec_later_commit_covers,
    walrec_next,
    walrec_parse_entry,
    walrec_parse_state,
    walrec_parse_varints,
    walrec_state,
)

_NAMES = {
    WALREC_OK: "ok",
    WALREC_END: "end",
    WALREC_TORN: "torn",
    WALREC_BAD_LENGTH: "length field is damaged",
    WALREC_BAD_RECORD: "record does not parse",
    WALREC_BAD_CRC: "crc mismatch",
    WALREC_BAD_DATA: "contents do not fit the record type",
    WALREC_BAD_ORDER: "record out of place",
    WALREC_CONFLICT: "metadata conflict",
    WALREC_GAP: "entry index leaves a gap",
    WALREC_LOST: "committed records are missing",
    WALREC_NO_MEMORY: "out of memory",
}

OK = WALREC_OK
END = WALREC_END
TORN = WALREC_TORN


def describe(int code):
    """The words for a code that `LogScan.segment` returned."""
    return _NAMES.get(code, f"code {code}")


cdef class EntryTable:
    """See walrec.pxd. In Python: `len()`, `rows()` for numpy, `entry(i)` for a test or a tool."""

    def __cinit__(self):
        self.refs = NULL
        self.bases = NULL
        self.segments = []
        self.views = []

    def __dealloc__(self):
        free(self.refs)
        free(self.bases)

    def __len__(self):
        return self.count

    cdef const uint8_t *data(self, size_t i) noexcept nogil:
        if self.refs[i].offset == 0:
            return NULL
        return self.bases[self.refs[i].segment] + self.refs[i].offset

    def rows(self):
        """The rows as bytes, 40 each: term u64, index u64, offset u64, data_bytes u32, segment u32, type i32, 0."""
        return (<char *>self.refs)[: self.count * sizeof(walscan_row)] if self.count else b""

    def entry(self, size_t i):
        """(type, term, index, data or None) of row `i`. Errors: IndexError."""
        cdef walscan_row *ref
        if i >= self.count:
            raise IndexError(i)
        ref = &self.refs[i]
        data = None
        if ref.offset:
            data = (<char *>self.data(i))[: ref.data_bytes]
        return ref.type, ref.term, ref.index, data

    def survey(self):
        """What a start needs to know of a log without reading its requests one by one.

        Returns (runs, rare): runs is [(first index, term)] of each stretch of one term; rare lists the indexes of
        entries that no client asked for: configuration changes, and what members themselves write (attributes and
        versions). A client's request does not begin with its header, nor with an id as a v2 request does.
        """
        cdef size_t i
        cdef walscan_row *row
        cdef const uint8_t *data
        cdef uint64_t term = 0
        runs = []
        rare = []
        for i in range(self.count):
            row = self.refs + i
            if row.term != term:
                term = row.term
                runs.append((row.index, term))
            data = self.data(i)
            if row.type or (row.data_bytes > 2 and (data[0] == 0x08 or (data[0] == 0xA2 and data[1] == 0x06))):
                rare.append(row.index)
        return runs, rare


cdef int table_put(EntryTable table, uint64_t snapshot_index, walrec_entry *entry, const uint8_t *base, uint32_t segment) noexcept nogil:
    cdef uint64_t position
    if entry.index <= snapshot_index:
        return WALREC_OK
    position = entry.index - snapshot_index - 1
    if position > table.count:
        return WALREC_GAP
    return table_set(table, position, entry, base, segment)


# Row `position` (at most table.count) becomes the last one: a later record for an index replaces it and everything
# after it.
cdef int table_set(EntryTable table, uint64_t position, walrec_entry *entry, const uint8_t *base, uint32_t segment) noexcept nogil:
    cdef size_t capacity
    cdef walscan_row *grown
    cdef walscan_row *ref
    if position >= table.capacity:
        capacity = table.capacity * 2 if table.capacity else 1024
        grown = <walscan_row *>realloc(table.refs, capacity * sizeof(walscan_row))
        if grown == NULL:
            return WALREC_NO_MEMORY
        table.refs = grown
        table.capacity = capacity
    ref = &table.refs[position]
    ref.term = entry.term
    ref.index = entry.index
    ref.type = entry.type
    ref.segment = segment
    ref.reserved = 0
    ref.offset = <uint64_t>(entry.data - base) if entry.data != NULL else 0
    ref.data_bytes = <uint32_t>entry.data_bytes
    table.count = <size_t>position + 1
    return WALREC_OK


cdef class LogScan:
    """Reads segments one after the other and keeps what a start-up needs.

    After `segment()` of every file: `metadata`, `state`, `snapshots`, `table`, `crc` and `offset`.
    Errors: none raised for what is in the files; `segment()` returns a code, `offset` says where.
    Source: formats.md 1.4, 1.5, 1.7, 1.8.
    """
    cdef readonly EntryTable table
    cdef readonly uint64_t snapshot_index
    cdef readonly bytes metadata  # None before the first
    cdef readonly list snapshots  # (index, term, conf_state or None), in log order
    cdef readonly size_t offset  # where the last segment() stopped: end of its last good frame
    cdef readonly uint32_t crc  # rolling value there
    cdef readonly uint64_t last_index, last_term  # of the last entry met, also before the snapshot
    cdef readonly size_t records
    cdef walrec_state hard_state
    cdef uint64_t boundary_term  # of the last record for the entry at snapshot_index, 0 before there was one
    cdef bint seeded, described

    def __init__(self, uint64_t snapshot_index=0):
        self.table = EntryTable()
        self.snapshot_index = snapshot_index
        self.snapshots = []

    @property
    def state(self):
        """(term, vote, commit) of the last hard state, zeros when there was none."""
        return self.hard_state.term, self.hard_state.vote, self.hard_state.commit

    def segment(self, buffer, bint last):
        """Walk one segment. END: its data ended cleanly. TORN: only the last, to be repaired. Else fatal.

        Shapes: buffer is the whole file, kept alive by `table`.
        """
        cdef const uint8_t[::1] view = buffer
        cdef const uint8_t *base
        cdef const uint8_t **bases
        cdef size_t segments = len(self.table.segments)
        cdef int code
        self.offset = 0
        self.seeded = self.described = False
        if view.shape[0] == 0:
            return WALREC_BAD_ORDER
        base = &view[0]
        bases = <const uint8_t **>realloc(self.table.bases, (segments + 1) * sizeof(void *))
        if bases == NULL:
            raise MemoryError("WAL segments")
        self.table.bases = bases
        bases[segments] = base
        self.table.segments.append(buffer)
        self.table.views.append(view)
        while True:
            with nogil:
                code = self.walk(base, <size_t>view.shape[0], <uint32_t>segments, last)
            if code != WALREC_OK:
                return code
            code = self.keep(base, <size_t>view.shape[0], last)
            if code != WALREC_OK:
                return code

    cdef int walk(self, const uint8_t *base, size_t size, uint32_t segment, bint last) noexcept nogil:
        """Frames up to the next metadata or snapshot record, left unread (OK), or to an end or error."""
        cdef walrec_frame frame
        cdef walrec_entry entry
        cdef walrec_state state
        cdef uint32_t crc
        cdef int code
        while True:
            crc = self.crc
            code = walrec_next(base, size, self.offset, last, &crc, &frame)
            if code == WALREC_TORN or code == WALREC_END:
                # A segment gets its name after its head is durable: one without is not torn but damaged.
                if not self.described:
                    return WALREC_BAD_ORDER
                if last and walrec_later_commit_covers(base, size, self.offset, self.last_index + 1):
                    return WALREC_LOST
                return code
            if code != WALREC_OK:
                return code
            if frame.type == WALREC_CRC:
                self.seeded = True
            elif not self.seeded:
                return WALREC_BAD_ORDER
            elif frame.type == WALREC_METADATA or frame.type == WALREC_SNAPSHOT:
                return WALREC_OK
            elif not self.described:
                return WALREC_BAD_ORDER
            elif frame.type == WALREC_ENTRY:
                code = walrec_parse_entry(frame.data, frame.data_bytes, &entry)
                if code == WALREC_OK:
                    code = table_put(self.table, self.snapshot_index, &entry, base, segment)
                if code != WALREC_OK:
                    return code
                if entry.index == self.snapshot_index:
                    self.boundary_term = entry.term
                self.last_index = entry.index
                self.last_term = entry.term
            elif frame.type == WALREC_STATE:
                if walrec_parse_state(frame.data, frame.data_bytes, &state) != WALREC_OK:
                    return WALREC_BAD_DATA
                self.hard_state = state
            else:
                return WALREC_BAD_DATA
            self.crc = crc
            self.offset += frame.frame_bytes
            self.records += 1

    cdef int keep(self, const uint8_t *base, size_t size, bint last):
        """Take in the metadata or snapshot record at `offset`."""
        cdef walrec_frame frame
        cdef uint32_t crc = self.crc
        cdef uint64_t index = 0, term = 0, conf_state_bytes = 0
        walrec_next(base, size, self.offset, last, &crc, &frame)
        data = (<char *>frame.data)[: frame.data_bytes] if frame.data != NULL else b""
        if frame.type == WALREC_METADATA:
            if self.metadata is not None and self.metadata != data:
                return WALREC_CONFLICT
            self.metadata = data
            self.described = True
        else:
            if not self.described or not data:
                return WALREC_BAD_ORDER
            if walrec_parse_varints(frame.data, frame.data_bytes, &index, &term, &conf_state_bytes, True) != WALREC_OK:
                return WALREC_BAD_DATA
            # Field 3 is the last: its bytes are the record's end.
            conf_state = data[len(data) - conf_state_bytes:] if conf_state_bytes else None
            self.snapshots.append((index, term, conf_state))
            # A snapshot that the log itself led up to changes nothing in it. One that came from the leader replaces
            # it whole: entries before the record are of another history, also those above the snapshot's index.
            if index == self.snapshot_index and (self.last_index < index or self.boundary_term != term):
                self.table.count = 0
                self.last_index = index
                self.last_term = self.boundary_term = term
            elif index > self.last_index:
                self.last_index = index
                self.last_term = term
        self.crc = crc
        self.offset += frame.frame_bytes
        self.records += 1
        return WALREC_OK


cdef class SegmentScan:
    """The entries of one segment, wherever they begin, in an EntryTable: for reading them back later.

    Shapes: buffer is the mapped segment, kept alive by `table`. Only bytes before the `end` given to `extend` are
        touched: what lies behind may be in the middle of being written.
    Rows are consecutive; a record for an index below the first row, or one that leaves a gap (a snapshot came
        between), begins the table anew. Rows may be outdated by a later segment: compare their terms.
    """
    cdef readonly EntryTable table
    cdef readonly size_t offset  # everything before it is in the table
    cdef uint32_t crc
    cdef const uint8_t *base
    cdef size_t size

    def __init__(self, buffer):
        cdef const uint8_t[::1] view = buffer
        self.table = EntryTable()
        self.size = <size_t>view.shape[0]
        self.base = &view[0] if self.size else NULL
        self.table.bases = <const uint8_t **>realloc(NULL, sizeof(void *))
        if self.table.bases == NULL:
            raise MemoryError("WAL segment")
        self.table.bases[0] = self.base
        self.table.segments.append(buffer)
        self.table.views.append(view)

    @property
    def first_index(self):
        """Index of the first row, 0 without rows."""
        return self.table.refs[0].index if self.table.count else 0

    def term(self, size_t i):
        """Term of row `i`. Errors: IndexError."""
        if i >= self.table.count:
            raise IndexError(i)
        return self.table.refs[i].term

    def extend(self, size_t end):
        """Take in the records up to byte `end`, which a record ends at. OK, END (a zero length word before it), or
        the code of damage. The interpreter lock is not held meanwhile; nobody else may use `table` then."""
        cdef int code
        with nogil:
            code = self.walk(end if end < self.size else self.size)
        return code

    cdef int walk(self, size_t end) noexcept nogil:
        cdef walrec_frame frame
        cdef walrec_entry entry
        cdef uint32_t crc
        cdef uint64_t first, position
        cdef int code
        while self.offset < end:
            crc = self.crc
            code = walrec_next(self.base, end, self.offset, False, &crc, &frame)
            if code != WALREC_OK:
                return code
            if frame.type == WALREC_ENTRY:
                code = walrec_parse_entry(frame.data, frame.data_bytes, &entry)
                if code != WALREC_OK:
                    return code
                first = self.table.refs[0].index if self.table.count else entry.index
                position = entry.index - first
                if entry.index < first or position > self.table.count:
                    position = 0
                code = table_set(self.table, position, &entry, self.base, 0)
                if code != WALREC_OK:
                    return code
            self.crc = crc
            self.offset += frame.frame_bytes
        return WALREC_OK
