"""Software transactions of etcd's client library as steps of a load client: requests built, answers read.

Facts (steps, comparisons, keys): etcd client/v3/concurrency/stm.go, mutex.go, key.go. Field numbers:
etcdserverpb (rpc.proto), v3lockpb (v3lock.proto).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from etcdfast._ext.loadclients cimport push_ready, settle
from etcdfast._ext.loadstats cimport record_latency
from etcdfast._ext.loadtypes cimport (
    Client, END_MESSAGE, Load, STEP_ACQUIRE, STEP_BEGIN, STEP_COMMIT, STEP_FETCH, STEP_LOCK, STEP_OWNED, STEP_QUEUE,
    STEP_UNLOCK, STEP_WAIT, STM_DELETE, STM_KEY_BYTES, STM_LOCK, STM_LOCK_CLIENT, STM_LOCK_KEY_BYTES_MAX,
    STM_LOCK_NONE, STM_LOCK_RPC, STM_RANGE, STM_READ_COMMITTED, STM_SERIALIZABLE, STM_SNAPSHOT, STM_TXN, STM_UNLOCK,
    STM_WATCH, Stm, mix64, store_be32,
)
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_MORE, wire_bytes_size, wire_cursor, wire_field, wire_next, wire_put_bytes, wire_put_tag,
    wire_put_uint, wire_put_varint, wire_uint_size, wire_varint_size,
)


cdef enum:
    FRAME_PREFIX_BYTES = 5
    # Compare or RequestOp of one key, value apart: nested heads, the key, numbers
    OPERATION_BYTES_MAX = 128
    # lock steps: two lock keys and small fields
    STEP_BYTES_MAX = 1024
    COMPARE_EQUAL = 0
    COMPARE_LESS = 2
    TARGET_CREATE = 1
    TARGET_MOD = 2
    SORT_ASCEND = 1
    SORT_DESCEND = 2
    SORT_BY_CREATE = 2

cdef const char* LOCK_PREFIX = b"stmlock/"
cdef uint32_t LOCK_PREFIX_BYTES = 8


cdef int stm_new(Load* g, int32_t i) noexcept nogil:
    cdef Client* client = &g.clients[i]
    cdef Stm* s = <Stm*>calloc(1, sizeof(Stm))
    client.stm = s
    if s == NULL:
        return -1
    s.keys = <uint64_t*>calloc(g.stm_keys_each + 1, sizeof(uint64_t))
    s.revisions = <int64_t*>calloc(g.stm_keys_each + 1, sizeof(int64_t))
    # of each key at most: a comparison, a second one, a put, a get
    s.request_capacity = STEP_BYTES_MAX + g.stm_keys_each * (4 * OPERATION_BYTES_MAX + g.value_bytes)
    s.request = <uint8_t*>malloc(s.request_capacity)
    if s.keys == NULL or s.revisions == NULL or s.request == NULL:
        return -1
    s.lock_key_bytes = <uint32_t>snprintf(<char*>s.lock_key, STM_LOCK_KEY_BYTES_MAX, "%s%llx", LOCK_PREFIX,
                                          <unsigned long long>(g.lease_base + i))
    return 0


cdef void stm_free(Client* client) noexcept nogil:
    if client.stm == NULL:
        return
    free(client.stm.keys)
    free(client.stm.revisions)
    free(client.stm.request)
    free(client.stm)
    client.stm = NULL


# ---- requests -----------------------------------------------------------------------------------


cdef void choose_keys(Load* g, Client* client) noexcept nogil:
    """Different keys at random; the same for a request number and seed."""
    cdef Stm* s = client.stm
    cdef uint64_t r = mix64(g.seed + <uint64_t>client.index)
    cdef uint64_t number
    cdef uint32_t k = 0
    cdef uint32_t j
    while k < g.stm_keys_each:
        r = mix64(r)
        number = r % g.stm_keys
        for j in range(k):
            if s.keys[j] == number:
                break
        else:
            s.keys[k] = number
            k += 1


cdef void begin_attempt(Stm* s) noexcept nogil:
    s.fetched = 0
    s.base_revision = 0


cdef inline void write_key(uint8_t* key, uint64_t number) noexcept nogil:
    """As etcd's tool has it: the number as a zigzag varint in 16 bytes."""
    memset(key, 0, STM_KEY_BYTES)
    wire_put_varint(key, number << 1)


cdef inline uint8_t* put_head(uint8_t* p, uint32_t number, uint64_t size) noexcept nogil:
    """Tag and length of a field that the caller writes next."""
    return wire_put_varint(wire_put_tag(p, number, WIRE_BYTES), size)


cdef uint8_t* put_compare(uint8_t* p, const uint8_t* key, uint32_t key_bytes, int result, int target,
                          int64_t revision) noexcept nogil:
    """TxnRequest.compare of a revision. Compare: 1 result, 2 target, 3 key, 5 create_revision, 6 mod_revision."""
    cdef uint32_t number = 5 if target == TARGET_CREATE else 6
    cdef uint64_t size = wire_uint_size(2, target) + wire_bytes_size(3, key_bytes) + wire_uint_size(number, revision)
    if result:
        size += wire_uint_size(1, result)
    p = put_head(p, 1, size)
    if result:
        p = wire_put_uint(p, 1, result)
    p = wire_put_uint(p, 2, target)
    p = wire_put_bytes(p, 3, key, key_bytes)
    return wire_put_uint(p, number, revision)


cdef uint8_t* put_get(uint8_t* p, uint32_t branch, const uint8_t* key, uint32_t key_bytes, int64_t revision,
                      bint serializable) noexcept nogil:
    """A RequestOp that reads one key. RangeRequest: 1 key, 4 revision, 7 serializable."""
    cdef uint64_t size = wire_bytes_size(1, key_bytes)
    if revision:
        size += wire_uint_size(4, revision)
    if serializable:
        size += 2
    p = put_head(p, branch, wire_bytes_size(1, size))
    p = put_head(p, 1, size)
    p = wire_put_bytes(p, 1, key, key_bytes)
    if revision:
        p = wire_put_uint(p, 4, revision)
    if serializable:
        p = wire_put_uint(p, 7, 1)
    return p


cdef uint8_t* put_put(uint8_t* p, uint32_t branch, const uint8_t* key, uint32_t key_bytes, const uint8_t* value,
                      uint32_t value_bytes, int64_t lease) noexcept nogil:
    """A RequestOp that puts one key. PutRequest: 1 key, 2 value, 3 lease."""
    cdef uint64_t size = wire_bytes_size(1, key_bytes)
    if value_bytes:
        size += wire_bytes_size(2, value_bytes)
    if lease:
        size += wire_uint_size(3, lease)
    p = put_head(p, branch, wire_bytes_size(2, size))
    p = put_head(p, 2, size)
    p = wire_put_bytes(p, 1, key, key_bytes)
    if value_bytes:
        p = wire_put_bytes(p, 2, value, value_bytes)
    if lease:
        p = wire_put_uint(p, 3, lease)
    return p


cdef uint8_t* put_lock_range(uint8_t* p, int order, int64_t create_max) noexcept nogil:
    """RangeRequest of the first or last created lock key: 5 sort_order, 6 sort_target, 13 max_create_revision."""
    p = wire_put_bytes(p, 1, LOCK_PREFIX, LOCK_PREFIX_BYTES)
    # end of the prefix: "/" + 1
    p = wire_put_bytes(p, 2, b"stmlock0", LOCK_PREFIX_BYTES)
    p = wire_put_uint(p, 3, 1)
    p = wire_put_uint(p, 5, order)
    p = wire_put_uint(p, 6, SORT_BY_CREATE)
    if create_max:
        p = wire_put_uint(p, 13, create_max)
    return p


cdef uint8_t* build_acquire(Load* g, Stm* s, int64_t lease, uint8_t* p) noexcept nogil:
    """Put the own key unless it is there; either way say who is first."""
    cdef uint8_t owner[64]
    cdef uint64_t owner_bytes = <uint64_t>(put_lock_range(owner, SORT_ASCEND, 0) - owner)
    cdef uint32_t branch
    p = put_compare(p, s.lock_key, s.lock_key_bytes, COMPARE_EQUAL, TARGET_CREATE, 0)
    for branch in range(2, 4):
        if branch == 2:
            p = put_put(p, branch, s.lock_key, s.lock_key_bytes, NULL, 0, lease)
        else:
            p = put_get(p, branch, s.lock_key, s.lock_key_bytes, 0, False)
        p = put_head(p, branch, wire_bytes_size(1, owner_bytes))
        p = wire_put_bytes(p, 1, owner, owner_bytes)
    return p


cdef uint8_t* build_wait(Stm* s, uint8_t* p) noexcept nogil:
    """WatchRequest: 1 create_request {1 key, 3 start_revision}."""
    cdef uint64_t size = wire_bytes_size(1, s.other_key_bytes) + wire_uint_size(3, s.header_revision)
    p = put_head(p, 1, size)
    p = wire_put_bytes(p, 1, s.other_key, s.other_key_bytes)
    return wire_put_uint(p, 3, s.header_revision)


cdef uint8_t* build_fetch(Load* g, Stm* s, uint8_t* p) noexcept nogil:
    """A Txn that reads the next key, as the library does it."""
    cdef uint8_t key[STM_KEY_BYTES]
    cdef int64_t revision = 0
    cdef bint serializable = True
    if g.stm_isolation >= STM_SERIALIZABLE:
        # the first read says at which revision the others read
        revision = s.base_revision if s.fetched else 0
        serializable = s.fetched > 0
    write_key(key, s.keys[s.fetched])
    return put_get(p, 2, key, STM_KEY_BYTES, revision, serializable)


cdef uint8_t* build_commit(Load* g, Client* client, uint8_t* p) noexcept nogil:
    cdef Stm* s = client.stm
    cdef uint8_t key[STM_KEY_BYTES]
    cdef uint64_t r = mix64(g.seed + <uint64_t>client.index)
    cdef uint32_t k
    if g.stm_isolation > STM_READ_COMMITTED:
        for k in range(g.stm_keys_each):
            write_key(key, s.keys[k])
            p = put_compare(p, key, STM_KEY_BYTES, COMPARE_EQUAL, TARGET_MOD, s.revisions[k])
    if g.stm_isolation == STM_SNAPSHOT:
        for k in range(g.stm_writes):
            write_key(key, s.keys[k])
            p = put_compare(p, key, STM_KEY_BYTES, COMPARE_LESS, TARGET_MOD, s.base_revision + 1)
    for k in range(g.stm_writes):
        write_key(key, s.keys[k])
        p = put_put(p, 2, key, STM_KEY_BYTES, g.value_pool + ((r >> 13) + 4099 * <uint64_t>k) % 65536, g.value_bytes, 0)
    if g.stm_isolation >= STM_SERIALIZABLE:
        # a refusal brings what the next attempt reads
        for k in range(g.stm_keys_each):
            write_key(key, s.keys[k])
            p = put_get(p, 3, key, STM_KEY_BYTES, 0, False)
    return p


cdef void stm_build(Load* g, Client* client) noexcept nogil:
    cdef Stm* s = client.stm
    cdef uint8_t* p = s.request + FRAME_PREFIX_BYTES
    cdef int64_t lease = g.lease_base + (client - g.clients)
    if s.step == STEP_BEGIN:
        choose_keys(g, client)
        begin_attempt(s)
        s.failed = s.locked = 0
        s.step = STEP_FETCH if g.stm_keys_each else STEP_COMMIT
        if g.stm_lock == STM_LOCK_CLIENT:
            s.step = STEP_ACQUIRE
        elif g.stm_lock == STM_LOCK_RPC:
            s.step = STEP_LOCK
    s.found = 0
    s.found_create = s.found_own = 0
    s.committed = s.waited_gone = 0
    s.method = STM_TXN
    if s.step == STEP_LOCK:
        s.method = STM_LOCK
        s.locked = 1
        p = wire_put_bytes(p, 1, LOCK_PREFIX, LOCK_PREFIX_BYTES - 1)
        p = wire_put_uint(p, 2, lease)
    elif s.step == STEP_ACQUIRE:
        s.locked = 1
        p = build_acquire(g, s, lease, p)
    elif s.step == STEP_QUEUE:
        s.method = STM_RANGE
        p = put_lock_range(p, SORT_DESCEND, s.own_revision - 1)
    elif s.step == STEP_WAIT:
        s.method = STM_WATCH
        p = build_wait(s, p)
    elif s.step == STEP_OWNED:
        s.method = STM_RANGE
        p = wire_put_bytes(p, 1, s.lock_key, s.lock_key_bytes)
    elif s.step == STEP_FETCH:
        p = build_fetch(g, s, p)
    elif s.step == STEP_COMMIT:
        p = build_commit(g, client, p)
    else:
        s.method = STM_UNLOCK if g.stm_lock == STM_LOCK_RPC else STM_DELETE
        p = wire_put_bytes(p, 1, s.lock_key, s.lock_key_bytes)
    s.request_bytes = <uint32_t>(p - s.request)
    s.request[0] = 0
    store_be32(s.request + 1, s.request_bytes - FRAME_PREFIX_BYTES)


# ---- answers ------------------------------------------------------------------------------------


ctypedef struct Found:
    # One RangeResponse.
    uint32_t count
    int64_t header_revision
    int64_t create_revision      # of its first key, as the rest
    int64_t mod_revision
    const uint8_t* key
    uint64_t key_bytes


cdef int read_header(const uint8_t* p, uint64_t n, int64_t* revision) noexcept nogil:
    cdef wire_cursor at
    cdef wire_field f
    cdef int rc
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc
        if f.number == 3:
            revision[0] = <int64_t>f.value


cdef int read_range(const uint8_t* p, uint64_t n, Found* found) noexcept nogil:
    """RangeResponse: 1 header, 2 kvs {1 key, 2 create_revision, 3 mod_revision}. 0, or below."""
    cdef wire_cursor at, inner
    cdef wire_field f, sub
    cdef int rc
    memset(found, 0, sizeof(Found))
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc
        if f.number == 1 and f.type == WIRE_BYTES:
            if read_header(f.data, f.size, &found.header_revision) < 0:
                return -1
        elif f.number == 2 and f.type == WIRE_BYTES:
            found.count += 1
            if found.count > 1:
                continue
            inner.pos = f.data
            inner.end = f.data + f.size
            while True:
                rc = wire_next(&inner, &sub)
                if rc != WIRE_MORE:
                    break
                if sub.number == 1:
                    found.key = sub.data
                    found.key_bytes = sub.size
                elif sub.number == 2:
                    found.create_revision = <int64_t>sub.value
                elif sub.number == 3:
                    found.mod_revision = <int64_t>sub.value
            if rc < 0:
                return rc


cdef int take_range(Load* g, Stm* s, uint32_t number, Found* found) noexcept nogil:
    """Answer `number` of a step was a range. 0, or END_MESSAGE."""
    if s.step == STEP_FETCH or s.step == STEP_COMMIT:
        if s.step == STEP_FETCH:
            number = s.fetched
        if number >= g.stm_keys_each:
            return END_MESSAGE
        s.revisions[number] = found.mod_revision
        if s.base_revision == 0 or found.header_revision < s.base_revision:
            s.base_revision = found.header_revision
        return 0
    if s.step == STEP_ACQUIRE and number == 0:
        s.found_own = found.create_revision
        return 0
    s.found = found.count
    s.found_create = found.create_revision
    if s.step == STEP_QUEUE and found.count:
        if found.key_bytes > STM_LOCK_KEY_BYTES_MAX:
            return END_MESSAGE
        memcpy(s.other_key, found.key, found.key_bytes)
        s.other_key_bytes = <uint32_t>found.key_bytes
    return 0


cdef int read_txn(Load* g, Stm* s, const uint8_t* p, size_t n) noexcept nogil:
    """TxnResponse: 1 header, 2 succeeded, 3 responses {1 response_range ..}."""
    cdef wire_cursor at, inner
    cdef wire_field f, sub
    cdef Found found
    cdef uint32_t number = 0
    cdef int rc
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            break
        if f.number == 1 and f.type == WIRE_BYTES:
            if read_header(f.data, f.size, &s.header_revision) < 0:
                return END_MESSAGE
        elif f.number == 2:
            s.committed = f.value != 0
        elif f.number == 3 and f.type == WIRE_BYTES:
            if s.step == STEP_COMMIT and number == 0 and not s.committed:
                # a refusal: what it brings is the next attempt's
                s.base_revision = 0
            inner.pos = f.data
            inner.end = f.data + f.size
            while True:
                rc = wire_next(&inner, &sub)
                if rc != WIRE_MORE:
                    break
                if sub.number == 1 and sub.type == WIRE_BYTES:
                    if read_range(sub.data, sub.size, &found) < 0 or take_range(g, s, number, &found) < 0:
                        return END_MESSAGE
            if rc < 0:
                return END_MESSAGE
            number += 1
    return END_MESSAGE if rc < 0 else 0


cdef int read_waited(Stm* s, const uint8_t* p, size_t n) noexcept nogil:
    """WatchResponse: 4 canceled, 11 events {1 type}; a DELETE is what we wait for."""
    cdef wire_cursor at, inner
    cdef wire_field f, sub
    cdef int rc
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            break
        if f.number == 4 and f.value:
            # its revision is compacted: ask anew who is before us
            s.waited_gone = 1
        elif f.number == 11 and f.type == WIRE_BYTES:
            inner.pos = f.data
            inner.end = f.data + f.size
            while True:
                rc = wire_next(&inner, &sub)
                if rc != WIRE_MORE:
                    break
                if sub.number == 1 and sub.value == 1:
                    s.waited_gone = 1
            if rc < 0:
                return END_MESSAGE
    return END_MESSAGE if rc < 0 else s.waited_gone


cdef int read_lock(Stm* s, const uint8_t* p, size_t n) noexcept nogil:
    """LockResponse: 2 key, which Unlock wants back."""
    cdef wire_cursor at
    cdef wire_field f
    cdef int rc
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return END_MESSAGE if rc < 0 else 0
        if f.number == 2 and f.type == WIRE_BYTES:
            if f.size > STM_LOCK_KEY_BYTES_MAX:
                return END_MESSAGE
            memcpy(s.lock_key, f.data, f.size)
            s.lock_key_bytes = <uint32_t>f.size


cdef int stm_message(Load* g, Client* client, const uint8_t* p, size_t n) noexcept nogil:
    cdef Stm* s = client.stm
    cdef Found found
    if s.method == STM_TXN:
        return read_txn(g, s, p, n)
    if s.method == STM_RANGE:
        if read_range(p, n, &found) < 0:
            return END_MESSAGE
        s.header_revision = found.header_revision
        return take_range(g, s, 0, &found)
    if s.method == STM_WATCH:
        return read_waited(s, p, n)
    if s.method == STM_LOCK:
        return read_lock(s, p, n)
    return 0


cdef void locked(Load* g, Stm* s) noexcept nogil:
    s.step = STEP_FETCH if g.stm_keys_each else STEP_COMMIT


cdef void stm_answered(Load* g, int32_t i, int64_t now) noexcept nogil:
    cdef Client* client = &g.clients[i]
    cdef Stm* s = client.stm
    if s.step == STEP_LOCK:
        locked(g, s)
    elif s.step == STEP_ACQUIRE:
        s.own_revision = s.header_revision if s.committed else s.found_own
        if s.found == 0 or s.found_create == s.own_revision:
            locked(g, s)
        else:
            s.step = STEP_QUEUE
    elif s.step == STEP_QUEUE:
        s.step = STEP_WAIT if s.found else STEP_OWNED
    elif s.step == STEP_WAIT:
        s.step = STEP_QUEUE
    elif s.step == STEP_OWNED:
        # gone: our lease has ended while we waited; queue again
        if s.found:
            locked(g, s)
        else:
            s.step = STEP_ACQUIRE
    elif s.step == STEP_FETCH:
        s.fetched += 1
        if s.fetched == g.stm_keys_each:
            s.step = STEP_COMMIT
    elif s.step == STEP_COMMIT and not s.committed:
        if g.stm_isolation < STM_SERIALIZABLE:
            begin_attempt(s)
            s.step = STEP_FETCH if g.stm_keys_each else STEP_COMMIT
    elif s.step == STEP_COMMIT and g.stm_lock != STM_LOCK_NONE:
        s.step = STEP_UNLOCK
    else:
        s.step = STEP_BEGIN
        s.locked = 0
        if not s.failed:
            record_latency(g, client, now)
        settle(g, i, now)
        return
    push_ready(g, i)
