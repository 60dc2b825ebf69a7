"""Key records of the revision index: one per key, with its revisions.

A key's generations are kept as ONE ascending list of revisions in which a tombstone ends a
generation. etcd's rules then become rules on that list (tests/unit/revmodel.py has them the long
way round, per generation, and the tests compare the two):

    read at R      take the last revision with main <= R; a tombstone means "not there"
    compaction, C  drop a prefix of the list; `history_keep_from` says how long

    put 2, put 5, delete 7, put 9        generations {2, 5, 7t} {9}        list 2 5 7t 9
        read at 6 -> 5     at 7 -> none     at 8 -> none     at 9 -> 9
        compact at 6 -> 5 7t 9              at 7 -> 7t 9     at 8 -> 9

A key with one revision is a Record alone: 32 bytes and the key. More revisions live in a History.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from etcdfast._ext.revslab cimport Arena, arena_alloc, arena_free, arena_resize

cdef enum:
    KEY_LEN_MASK = 0x3FFFFFFF
    RECORD_DEAD = 0x40000000        # the newest revision is a tombstone
    RECORD_SPILLED = 0x80000000     # link.history holds the revisions
    SIZE_MASK = 0x7FFFFFFF
    SIZE_TOMBSTONE = 0x80000000
    HISTORY_FIRST_CAPACITY = 2

cdef struct Revision:
    int64_t main
    uint32_t sub
    uint32_t size_mark      # SIZE_TOMBSTONE | length of the stored KeyValue, bytes

cdef struct History:
    int64_t first_created   # create revision of the oldest generation held
    int64_t first_version   # version of revisions[head], which may not be 1 after a compaction
    uint32_t* starts        # where each later generation starts in revisions[], ascending
    uint32_t head           # revisions[head : head + length] are held
    uint32_t length         # >= 1
    uint32_t capacity
    uint32_t starts_head    # starts[starts_head : starts_head + starts_length] are held
    uint32_t starts_length
    uint32_t starts_capacity
    # Revision revisions[capacity] follows

cdef union RecordLink:
    int64_t create_main     # not spilled
    History* history        # spilled

cdef struct Record:
    int64_t mod_main        # newest revision, also when it is a tombstone
    RecordLink link
    uint32_t version        # not spilled: a larger version keeps its history block
    uint32_t sub            # newest revision
    uint32_t size           # newest revision, bytes; 0 for a tombstone
    uint32_t key_len_marks  # KEY_LEN_MASK, RECORD_DEAD, RECORD_SPILLED
    # char key[key_len] follows


cdef inline char* record_key(Record* record) noexcept nogil:
    return <char*>record + sizeof(Record)


cdef inline uint32_t record_key_len(Record* record) noexcept nogil:
    return record.key_len_marks & KEY_LEN_MASK


cdef inline bint record_dead(Record* record) noexcept nogil:
    return (record.key_len_marks & RECORD_DEAD) != 0


cdef inline bint record_spilled(Record* record) noexcept nogil:
    return (record.key_len_marks & RECORD_SPILLED) != 0


cdef inline bint record_deep(Record* record) noexcept nogil:
    """Whether the record is more than one live revision: only then has compaction work with it."""
    return (record.key_len_marks & (RECORD_DEAD | RECORD_SPILLED)) != 0


cdef inline Revision* history_revisions(History* history) noexcept nogil:
    return <Revision*>(<char*>history + sizeof(History))


cdef inline size_t history_bytes(uint32_t capacity) noexcept nogil:
    return sizeof(History) + <size_t>capacity * sizeof(Revision)


cdef inline Record* record_new(Arena* arena, const char* key, uint32_t key_len) noexcept nogil:
    """A record with its key and no revision yet; NULL without memory."""
    cdef Record* record = <Record*>arena_alloc(arena, sizeof(Record) + key_len)
    if record == NULL:
        return NULL
    record.key_len_marks = key_len
    if key_len:
        memcpy(record_key(record), key, key_len)
    return record


cdef inline void history_free(Arena* arena, History* history) noexcept nogil:
    if history.starts != NULL:
        arena_free(arena, history.starts, <size_t>history.starts_capacity * sizeof(uint32_t))
    arena_free(arena, history, history_bytes(history.capacity))


cdef inline void record_free(Arena* arena, Record* record) noexcept nogil:
    if record_spilled(record):
        history_free(arena, record.link.history)
    arena_free(arena, record, sizeof(Record) + record_key_len(record))


cdef inline History* record_history_new(Arena* arena, Record* record, uint32_t capacity) noexcept nogil:
    """The record's one inline revision as a history; the record itself is untouched."""
    cdef History* history = <History*>arena_alloc(arena, history_bytes(capacity))
    cdef Revision* only
    if history == NULL:
        return NULL
    history.first_created = record.link.create_main
    history.first_version = record.version
    history.starts = NULL
    history.head = 0
    history.length = 1
    history.capacity = capacity
    history.starts_head = 0
    history.starts_length = 0
    history.starts_capacity = 0
    only = history_revisions(history)
    only.main = record.mod_main
    only.sub = record.sub
    only.size_mark = record.size | (SIZE_TOMBSTONE if record_dead(record) else 0)
    return history


cdef inline void history_shift(History* history) noexcept nogil:
    """Move what is held to the front of both arrays."""
    cdef Revision* revisions = history_revisions(history)
    cdef uint32_t i
    if history.head:
        memmove(revisions, revisions + history.head, <size_t>history.length * sizeof(Revision))
    for i in range(history.starts_length):
        history.starts[i] = history.starts[history.starts_head + i] - history.head
    history.starts_head = 0
    history.head = 0


cdef inline int record_make_room(Arena* arena, Record* record) noexcept nogil:
    """Room for one more revision in the record's history; 0, or -1 without memory (unchanged)."""
    cdef History* history = record.link.history
    cdef uint32_t capacity
    if history.head + history.length < history.capacity:
        return 0
    if history.head >= history.capacity // 2:
        history_shift(history)
        return 0
    if history.capacity > 0x3FFFFFFF:
        return -1
    capacity = history.capacity * 2
    history = <History*>arena_resize(
        arena, history, history_bytes(history.capacity), history_bytes(capacity),
        history_bytes(history.head + history.length),
    )
    if history == NULL:
        return -1
    history.capacity = capacity
    record.link.history = history
    return 0


cdef inline int history_push_start(Arena* arena, History* history) noexcept nogil:
    """Note that a generation starts at the next revision; 0, or -1 without memory (unchanged)."""
    cdef uint32_t used = history.starts_head + history.starts_length
    cdef uint32_t capacity, i
    cdef uint32_t* starts
    if used == history.starts_capacity:
        if history.starts_head and history.starts_head >= used // 2:
            for i in range(history.starts_length):
                history.starts[i] = history.starts[history.starts_head + i]
            history.starts_head = 0
        else:
            capacity = history.starts_capacity * 2 if used else 2
            if used:
                starts = <uint32_t*>arena_resize(
                    arena, history.starts, <size_t>used * sizeof(uint32_t),
                    <size_t>capacity * sizeof(uint32_t), <size_t>used * sizeof(uint32_t),
                )
            else:
                starts = <uint32_t*>arena_alloc(arena, <size_t>capacity * sizeof(uint32_t))
            if starts == NULL:
                return -1
            history.starts = starts
            history.starts_capacity = capacity
    history.starts[history.starts_head + history.starts_length] = history.head + history.length
    history.starts_length += 1
    return 0


cdef inline int record_append(
    Arena* arena, Record* record, int64_t main, uint32_t sub, uint32_t size_mark
) noexcept nogil:
    """Add a newer revision; 0, or -1 without memory (unchanged as seen from outside)."""
    cdef History* history
    cdef Revision* last
    if not record_spilled(record):
        history = record_history_new(arena, record, HISTORY_FIRST_CAPACITY)
        if history == NULL:
            return -1
        if record_dead(record) and history_push_start(arena, history) != 0:
            history_free(arena, history)
            return -1
        record.link.history = history
        record.key_len_marks |= RECORD_SPILLED
    else:
        if record_make_room(arena, record) != 0:
            return -1
        history = record.link.history
        if record_dead(record) and history_push_start(arena, history) != 0:
            return -1
    last = history_revisions(history) + history.head + history.length
    last.main = main
    last.sub = sub
    last.size_mark = size_mark
    history.length += 1
    record.mod_main = main
    record.sub = sub
    record.size = size_mark & SIZE_MASK
    if size_mark & SIZE_TOMBSTONE:
        record.key_len_marks |= RECORD_DEAD
    else:
        record.key_len_marks &= ~<uint32_t>RECORD_DEAD
    return 0


cdef inline void history_generation(
    History* history, uint32_t index, int64_t* created, int64_t* version
) noexcept nogil:
    """Create revision and version of revisions[index]."""
    cdef uint32_t low = history.starts_head
    cdef uint32_t high = low + history.starts_length
    cdef uint32_t middle
    if low == high or index < history.starts[low]:
        created[0] = history.first_created
        version[0] = history.first_version + (index - history.head)
        return
    if index >= history.starts[high - 1]:  # the newest generation is asked for most
        low = high - 1
    while high - low > 1:
        middle = low + (high - low) // 2
        if history.starts[middle] <= index:
            low = middle
        else:
            high = middle
    created[0] = history_revisions(history)[history.starts[low]].main
    version[0] = <int64_t>(index - history.starts[low]) + 1


cdef inline uint32_t history_after(History* history, int64_t rev) noexcept nogil:
    """How many of the revisions held have main <= rev."""
    cdef Revision* revisions = history_revisions(history) + history.head
    cdef uint32_t low = 0
    cdef uint32_t high = history.length
    cdef uint32_t middle
    if revisions[high - 1].main <= rev:
        return high
    while low < high:
        middle = low + (high - low) // 2
        if revisions[middle].main <= rev:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint32_t history_keep_from(History* history, int64_t compact_rev) noexcept nogil:
    """How many of the oldest revisions a compaction at compact_rev drops.

    A tombstone exactly at compact_rev stays until the next compaction (etcd >= 3.5.16), with
    everything after it. Otherwise the newest revision <= compact_rev stays, unless it is a tombstone.
    """
    cdef Revision* revisions = history_revisions(history) + history.head
    cdef uint32_t after = history_after(history, compact_rev)
    cdef uint32_t i = after
    cdef uint32_t kept
    if after == 0:
        return 0
    # One transaction may hold several revisions of a key: the oldest tombstone at compact_rev counts.
    kept = after if revisions[after - 1].size_mark & SIZE_TOMBSTONE else after - 1
    while i and revisions[i - 1].main == compact_rev:
        i -= 1
        if revisions[i].size_mark & SIZE_TOMBSTONE:
            kept = i
    return kept


cdef inline uint32_t record_keep_from(Record* record, int64_t compact_rev) noexcept nogil:
    """As history_keep_from, for any record."""
    if record_spilled(record):
        return history_keep_from(record.link.history, compact_rev)
    return 1 if record_dead(record) and record.mod_main < compact_rev else 0


cdef inline bint record_kept_main(
    Record* record, int64_t rev, int64_t* main, uint32_t* sub
) noexcept nogil:
    """The one revision <= rev that HashKV's keep set at rev holds of this key; False if none."""
    cdef History* history
    cdef Revision* kept
    cdef uint32_t index
    if not record_spilled(record):
        if record_dead(record) or record.mod_main > rev:
            return False
        main[0] = record.mod_main
        sub[0] = record.sub
        return True
    history = record.link.history
    index = history_keep_from(history, rev)
    if index == history.length:
        return False
    kept = history_revisions(history) + history.head + index
    if kept.main > rev or kept.size_mark & SIZE_TOMBSTONE:
        return False
    main[0] = kept.main
    sub[0] = kept.sub
    return True


cdef inline void record_drop(Arena* arena, Record* record, uint32_t count, bint finish) noexcept nogil:
    """Forget the oldest count revisions of a spilled record; at least one must remain.

    finish: no more will be dropped soon, so memory may shrink (which moves what is held).
    """
    cdef History* history = record.link.history
    cdef History* smaller
    cdef Revision* revisions = history_revisions(history)
    cdef uint32_t head = history.head + count
    cdef uint32_t start = 0
    cdef uint32_t capacity
    cdef bint crossed = False
    cdef int64_t created, version
    while history.starts_length and history.starts[history.starts_head] <= head:
        start = history.starts[history.starts_head]
        history.starts_head += 1
        history.starts_length -= 1
        crossed = True
    if crossed:
        history.first_created = revisions[start].main
        history.first_version = <int64_t>(head - start) + 1
    else:
        history.first_version += count
    history.head = head
    history.length -= count
    if history.length == 1 and history.first_version <= 0xFFFFFFFFU:
        created = history.first_created
        version = history.first_version
        history_free(arena, history)
        record.link.create_main = created
        record.version = <uint32_t>version
        record.key_len_marks &= ~<uint32_t>RECORD_SPILLED
        return
    if finish and history.capacity > 8 and history.length <= history.capacity // 4:
        history_shift(history)
        capacity = history.length * 2
        smaller = <History*>arena_resize(
            arena, history, history_bytes(history.capacity), history_bytes(capacity),
            history_bytes(history.length),
        )
        if smaller != NULL:  # without memory the larger block does as well
            smaller.capacity = capacity
            record.link.history = smaller
