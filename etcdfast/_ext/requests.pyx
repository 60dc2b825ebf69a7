"""Request checks of etcd's API layer on wire bytes: see requests.pxd."""

from collections import namedtuple

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memset

from etcdfast._ext.authcheck cimport check_auth, is_auth_method
from etcdfast._ext.errids cimport (
    ERR_DUPLICATE_KEY, ERR_EMPTY_KEY, ERR_INVALID_SORT_OPTION, ERR_KEY_NOT_FOUND, ERR_LEASE_PROVIDED,
    ERR_RANGE_STREAM_FILTER, ERR_RANGE_STREAM_SORT, ERR_TOO_MANY_OPS, ERR_VALUE_PROVIDED,
)
from etcdfast._ext.rpcids cimport (
    RPC_COMPACT, RPC_DELETE_RANGE, RPC_ELECTION_PROCLAIM, RPC_ELECTION_RESIGN, RPC_LEASE_GRANT, RPC_MEMBER_LIST,
    RPC_PUT, RPC_RANGE, RPC_RANGE_STREAM, RPC_TXN, RPC_WATCH,
)
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next, wire_varint,
)

cdef enum:
    PUT_OVERHEAD_BYTES = 256   # etcd's estimate of what a key costs beside key and value
    LEASE_COST_BYTES = 64      # and of what a lease costs

cdef enum:
    OP_NONE = 0
    OP_RANGE = 1
    OP_PUT = 2
    OP_DELETE = 3
    OP_TXN = 4

cdef enum:
    TXN_COMPARE = 1
    TXN_SUCCESS = 2
    TXN_FAILURE = 3


ctypedef struct slice_t:
    const uint8_t *data
    uint64_t size


ctypedef struct range_t:
    slice_t key
    int32_t sort_order
    int32_t sort_target
    bint serializable
    bint filtered


ctypedef struct put_t:
    slice_t key
    uint64_t value_size
    uint64_t lease
    bint ignore_value
    bint ignore_lease


ctypedef struct delete_t:
    slice_t key
    slice_t end


cdef inline wire_cursor over(const uint8_t *data, uint64_t size) noexcept nogil:
    cdef wire_cursor c
    c.pos = data
    c.end = data + size
    return c


# ---- one message each: 0 or REQUEST_MALFORMED. A known field of another wire type counts as unknown,
# ---- as Go's protobuf has it; of a field given twice the last one counts.

cdef int parse_any(const uint8_t *data, uint64_t size) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED


cdef int parse_nested(const uint8_t *data, uint64_t size, uint32_t fields) noexcept nogil:
    """A message of which the `fields` (bit of each number) are messages of plain fields."""
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED
        if f.type == WIRE_BYTES and f.number < 32 and fields >> f.number & 1 and parse_any(f.data, f.size) < 0:
            return REQUEST_MALFORMED


cdef int parse_watch_create(const uint8_t *data, uint64_t size) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_cursor packed
    cdef wire_field f
    cdef uint64_t filter
    cdef int more
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED
        if f.number == 5 and f.type == WIRE_BYTES:
            packed = over(f.data, f.size)
            while packed.pos < packed.end:
                if wire_varint(&packed, &filter) < 0:
                    return REQUEST_MALFORMED


cdef int parse_watch(const uint8_t *data, uint64_t size) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED
        if f.type != WIRE_BYTES:
            continue
        if f.number == 1 and parse_watch_create(f.data, f.size) < 0:
            return REQUEST_MALFORMED
        if 2 <= f.number <= 3 and parse_any(f.data, f.size) < 0:
            return REQUEST_MALFORMED


cdef int parse_lease_grant(const uint8_t *data, uint64_t size, uint64_t *lease) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    lease[0] = 0
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED
        if f.number == 2 and f.type == WIRE_VARINT:
            lease[0] = f.value


cdef int parse_range(const uint8_t *data, uint64_t size, range_t *r) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef uint64_t bounds[4]
    cdef int more
    memset(r, 0, sizeof(range_t))
    memset(bounds, 0, sizeof(bounds))
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            break
        if f.number == 1 and f.type == WIRE_BYTES:
            r.key.data = f.data
            r.key.size = f.size
        elif f.type != WIRE_VARINT:
            continue
        elif f.number == 5:
            r.sort_order = <int32_t>f.value
        elif f.number == 6:
            r.sort_target = <int32_t>f.value
        elif f.number == 7:
            r.serializable = f.value != 0
        elif 10 <= f.number <= 13:
            bounds[f.number - 10] = f.value
    r.filtered = (bounds[0] | bounds[1] | bounds[2] | bounds[3]) != 0
    return 0 if more == WIRE_END else REQUEST_MALFORMED


cdef int parse_put(const uint8_t *data, uint64_t size, put_t *p) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    memset(p, 0, sizeof(put_t))
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            break
        if f.type == WIRE_BYTES:
            if f.number == 1:
                p.key.data = f.data
                p.key.size = f.size
            elif f.number == 2:
                p.value_size = f.size
        elif f.type == WIRE_VARINT:
            if f.number == 3:
                p.lease = f.value
            elif f.number == 5:
                p.ignore_value = f.value != 0
            elif f.number == 6:
                p.ignore_lease = f.value != 0
    return 0 if more == WIRE_END else REQUEST_MALFORMED


cdef int parse_delete(const uint8_t *data, uint64_t size, delete_t *d) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    memset(d, 0, sizeof(delete_t))
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            break
        if f.type == WIRE_BYTES:
            if f.number == 1:
                d.key.data = f.data
                d.key.size = f.size
            elif f.number == 2:
                d.end.data = f.data
                d.end.size = f.size
    return 0 if more == WIRE_END else REQUEST_MALFORMED


cdef int parse_compare_key(const uint8_t *data, uint64_t size, slice_t *key) noexcept nogil:
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    key.data = NULL
    key.size = 0
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return 0 if more == WIRE_END else REQUEST_MALFORMED
        if f.number == 3 and f.type == WIRE_BYTES:
            key.data = f.data
            key.size = f.size


cdef int parse_op(const uint8_t *data, uint64_t size, slice_t *body) noexcept nogil:
    """Which operation a RequestOp holds (OP_*), or REQUEST_MALFORMED."""
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef int more
    cdef int kind = OP_NONE
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            return kind if more == WIRE_END else REQUEST_MALFORMED
        if OP_RANGE <= f.number <= OP_TXN and f.type == WIRE_BYTES:
            kind = <int>f.number
            body.data = f.data
            body.size = f.size


cdef inline int check_range(range_t *r) noexcept nogil:
    if r.key.size == 0:
        return ERR_EMPTY_KEY
    if not 0 <= r.sort_order <= 2 or not 0 <= r.sort_target <= 4:
        return ERR_INVALID_SORT_OPTION
    return 0


cdef inline int check_put(put_t *p) noexcept nogil:
    if p.key.size == 0:
        return ERR_EMPTY_KEY
    if p.ignore_value and p.value_size:
        return ERR_VALUE_PROVIDED
    if p.ignore_lease and p.lease:
        return ERR_LEASE_PROVIDED
    return 0


# ---- transactions

ctypedef struct txn_facts:
    uint64_t cost
    uint32_t puts            # of the whole tree
    uint32_t deletes
    uint32_t nested
    bint read_only           # of this level, as etcd's IsTxnReadonly
    bint serializable


cdef int survey_txn(const uint8_t *data, uint64_t size, int depth, txn_facts *facts) noexcept nogil:
    """Validate every message of the tree and add up what quota and route need.

    0, REQUEST_MALFORMED, or ERR_TOO_MANY_OPS for a tree deeper than any allowed one.
    """
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef slice_t body
    cdef range_t r
    cdef put_t p
    cdef delete_t d
    cdef txn_facts inner
    cdef uint64_t cost[2]
    cdef uint64_t one
    cdef int more, kind, rc
    if depth > REQUEST_TXN_DEPTH_MAX:
        return ERR_TOO_MANY_OPS
    memset(facts, 0, sizeof(txn_facts))
    facts.read_only = True
    facts.serializable = True
    cost[0] = cost[1] = 0
    while True:
        more = wire_next(&c, &f)
        if more != WIRE_MORE:
            break
        if f.type != WIRE_BYTES or f.number > TXN_FAILURE:
            continue
        if f.number == TXN_COMPARE:
            if parse_any(f.data, f.size) < 0:
                return REQUEST_MALFORMED
            continue
        kind = parse_op(f.data, f.size, &body)
        one = 0
        if kind < 0:
            return REQUEST_MALFORMED
        elif kind == OP_RANGE:
            if parse_range(body.data, body.size, &r) < 0:
                return REQUEST_MALFORMED
            facts.serializable = facts.serializable and r.serializable
        else:
            facts.read_only = False
            facts.serializable = False
            if kind == OP_PUT:
                if parse_put(body.data, body.size, &p) < 0:
                    return REQUEST_MALFORMED
                one = PUT_OVERHEAD_BYTES + p.key.size + p.value_size
                facts.puts += 1
            elif kind == OP_DELETE:
                if parse_delete(body.data, body.size, &d) < 0:
                    return REQUEST_MALFORMED
                facts.deletes += 1
            elif kind == OP_TXN:
                rc = survey_txn(body.data, body.size, depth + 1, &inner)
                if rc:
                    return rc
                one = inner.cost
                facts.puts += inner.puts
                facts.deletes += inner.deletes
                facts.nested += inner.nested + 1
        cost[f.number - TXN_SUCCESS] += one
    facts.cost = cost[0] if cost[0] > cost[1] else cost[1]
    return 0 if more == WIRE_END else REQUEST_MALFORMED


cdef int check_op(const uint8_t *data, uint64_t size, int64_t budget) noexcept nogil:
    cdef slice_t body
    cdef range_t r
    cdef put_t p
    cdef delete_t d
    cdef int kind = parse_op(data, size, &body)
    if kind == OP_RANGE:
        parse_range(body.data, body.size, &r)
        return check_range(&r)
    if kind == OP_PUT:
        parse_put(body.data, body.size, &p)
        return check_put(&p)
    if kind == OP_DELETE:
        parse_delete(body.data, body.size, &d)
        return ERR_EMPTY_KEY if d.key.size == 0 else 0
    if kind == OP_TXN:
        return check_txn(body.data, body.size, budget)
    return ERR_KEY_NOT_FOUND   # etcd's answer to an empty operation


cdef int check_txn(const uint8_t *data, uint64_t size, int64_t budget) noexcept nogil:
    """Counts, compares, then-list, else-list: the order in which etcd reports. Already surveyed."""
    cdef wire_cursor c = over(data, size)
    cdef wire_field f
    cdef slice_t key
    cdef int64_t counts[4]
    cdef int64_t most = 0
    cdef uint32_t part
    cdef int rc
    memset(counts, 0, sizeof(counts))
    while wire_next(&c, &f) == WIRE_MORE:
        if f.type == WIRE_BYTES and f.number <= TXN_FAILURE:
            counts[f.number] += 1
            if counts[f.number] > most:
                most = counts[f.number]
    if most > budget:
        return ERR_TOO_MANY_OPS
    for part in range(TXN_COMPARE, TXN_FAILURE + 1):
        if counts[part] == 0:
            continue
        c = over(data, size)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.type != WIRE_BYTES or f.number != part:
                continue
            if part == TXN_COMPARE:
                parse_compare_key(f.data, f.size, &key)
                rc = ERR_EMPTY_KEY if key.size == 0 else 0
            else:
                rc = check_op(f.data, f.size, budget - most)
            if rc:
                return rc
    return 0


# ---- the duplicate-key rule
#
# etcd walks each list in this order: its deletes, its nested transactions one after another (then-list,
# else-list), its puts. A put is refused when, earlier in that order, the same key was put or a delete
# covers it, except across then and else of one nested transaction, of which only one runs.
#
# Worst case: a message is full of operations (300 thousand in 2 MiB) and nested branches. Keys are put
# into ranks once, deletes become rank intervals in a Fenwick tree, and where two branches part, the
# shorter one is taken back and set again: n log^2 n in all, whatever the shape.

cdef enum:
    STEP_DELETE = 0
    STEP_PUT = 1
    STEP_BRANCH = 2


ctypedef struct step_t:
    const uint8_t *key
    const uint8_t *end
    uint32_t key_size
    uint32_t end_size
    uint32_t low         # PUT: rank of the key; DELETE: covers ranks [low, high)
    uint32_t high
    uint32_t split       # BRANCH: then-steps are [self + 1, split), else-steps [split, stop)
    uint32_t stop
    uint32_t kind


ctypedef struct overlap_t:
    step_t *steps
    uint32_t count
    uint32_t room
    step_t **puts        # sorted by key
    uint32_t put_count
    uint32_t ranks
    int32_t *tree        # Fenwick tree: how many deletes cover a rank
    uint32_t *present    # how often a rank is put


cdef inline int key_compare(const uint8_t *a, uint64_t a_size, const uint8_t *b, uint64_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, a_size if a_size < b_size else b_size)
    if order:
        return order
    return -1 if a_size < b_size else (1 if a_size > b_size else 0)


cdef int by_key(const void *a, const void *b) noexcept nogil:
    cdef step_t *x = (<step_t **>a)[0]
    cdef step_t *y = (<step_t **>b)[0]
    return key_compare(x.key, x.key_size, y.key, y.key_size)


cdef step_t *add_step(overlap_t *o, uint32_t kind) noexcept nogil:
    cdef step_t *grown
    cdef uint32_t room
    if o.count == o.room:
        room = o.room * 2 if o.room else 32
        grown = <step_t *>realloc(o.steps, <size_t>room * sizeof(step_t))
        if grown == NULL:
            return NULL
        o.steps = grown
        o.room = room
    grown = &o.steps[o.count]
    memset(grown, 0, sizeof(step_t))
    grown.kind = kind
    o.count += 1
    return grown


cdef int plan_list(overlap_t *o, const uint8_t *data, uint64_t size, uint32_t part) noexcept nogil:
    """Append the steps of one list (then or else) of a surveyed transaction."""
    cdef wire_cursor c
    cdef wire_field f
    cdef slice_t body
    cdef delete_t d
    cdef put_t p
    cdef step_t *s
    cdef uint32_t branch
    cdef int kind, wanted, turn
    for turn in range(3):
        wanted = OP_DELETE if turn == 0 else (OP_TXN if turn == 1 else OP_PUT)
        c = over(data, size)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.type != WIRE_BYTES or f.number != part:
                continue
            kind = parse_op(f.data, f.size, &body)
            if kind != wanted:
                continue
            if kind == OP_DELETE:
                parse_delete(body.data, body.size, &d)
                s = add_step(o, STEP_DELETE)
                if s == NULL:
                    return REQUEST_NO_MEMORY
                s.key = d.key.data
                s.key_size = <uint32_t>d.key.size
                s.end = d.end.data
                s.end_size = <uint32_t>d.end.size
            elif kind == OP_PUT:
                parse_put(body.data, body.size, &p)
                s = add_step(o, STEP_PUT)
                if s == NULL:
                    return REQUEST_NO_MEMORY
                s.key = p.key.data
                s.key_size = <uint32_t>p.key.size
            else:
                branch = o.count
                if add_step(o, STEP_BRANCH) == NULL:
                    return REQUEST_NO_MEMORY
                if plan_list(o, body.data, body.size, TXN_SUCCESS) < 0:
                    return REQUEST_NO_MEMORY
                o.steps[branch].split = o.count
                if plan_list(o, body.data, body.size, TXN_FAILURE) < 0:
                    return REQUEST_NO_MEMORY
                o.steps[branch].stop = o.count
    return 0


cdef uint32_t first_rank_from(overlap_t *o, const uint8_t *key, uint32_t size) noexcept nogil:
    """Rank of the smallest put key that is not below `key`."""
    cdef uint32_t low = 0
    cdef uint32_t high = o.put_count
    cdef uint32_t mid
    while low < high:
        mid = (low + high) // 2
        if key_compare(o.puts[mid].key, o.puts[mid].key_size, key, size) < 0:
            low = mid + 1
        else:
            high = mid
    return o.puts[low].low if low < o.put_count else o.ranks


cdef void rank_steps(overlap_t *o) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t n = 0
    cdef step_t *s
    for i in range(o.count):
        if o.steps[i].kind == STEP_PUT:
            o.puts[n] = &o.steps[i]
            n += 1
    o.put_count = n
    qsort(o.puts, n, sizeof(step_t *), by_key)
    o.ranks = 0
    for i in range(n):
        if i and by_key(&o.puts[i - 1], &o.puts[i]):
            o.ranks += 1
        o.puts[i].low = o.ranks
    o.ranks += 1
    for i in range(o.count):
        s = &o.steps[i]
        if s.kind != STEP_DELETE:
            continue
        s.low = first_rank_from(o, s.key, s.key_size)
        if s.end_size:
            # etcd takes the end literally here: "\0" (from key on) covers nothing in this check.
            s.high = first_rank_from(o, s.end, s.end_size)
        else:
            s.high = s.low
            if s.low < o.ranks and covers_point(o, s):
                s.high = s.low + 1


cdef bint covers_point(overlap_t *o, step_t *s) noexcept nogil:
    """Whether the key of a one-key delete is put at all. Precondition: s.low is its first rank."""
    cdef uint32_t low = 0
    cdef uint32_t high = o.put_count
    cdef uint32_t mid
    while low < high:
        mid = (low + high) // 2
        if o.puts[mid].low < s.low:
            low = mid + 1
        else:
            high = mid
    return low < o.put_count and key_compare(o.puts[low].key, o.puts[low].key_size, s.key, s.key_size) == 0


cdef inline void tree_add(overlap_t *o, uint32_t rank, int32_t n) noexcept nogil:
    cdef uint32_t i = rank + 1
    while i <= o.ranks:
        o.tree[i] += n
        i += i & (~i + 1)


cdef inline int32_t tree_at(overlap_t *o, uint32_t rank) noexcept nogil:
    cdef int32_t sum = 0
    cdef uint32_t i = rank + 1
    while i:
        sum += o.tree[i]
        i -= i & (~i + 1)
    return sum


cdef inline void set_step(overlap_t *o, step_t *s, int32_t n) noexcept nogil:
    if s.kind == STEP_PUT:
        o.present[s.low] += <uint32_t>n
    elif s.kind == STEP_DELETE and s.low < s.high:
        tree_add(o, s.low, n)
        tree_add(o, s.high, -n)


cdef void set_steps(overlap_t *o, uint32_t first, uint32_t stop, int32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(first, stop):
        set_step(o, &o.steps[i], n)


cdef int run_steps(overlap_t *o, uint32_t first, uint32_t stop) noexcept nogil:
    cdef uint32_t i = first
    cdef uint32_t small_first, small_stop, big_first, big_stop
    cdef step_t *s
    while i < stop:
        s = &o.steps[i]
        if s.kind == STEP_BRANCH:
            small_first, small_stop, big_first, big_stop = i + 1, s.split, s.split, s.stop
            if small_stop - small_first > big_stop - big_first:
                small_first, small_stop, big_first, big_stop = big_first, big_stop, small_first, small_stop
            if small_first < small_stop:
                if run_steps(o, small_first, small_stop):
                    return ERR_DUPLICATE_KEY
                set_steps(o, small_first, small_stop, -1)
            if run_steps(o, big_first, big_stop):
                return ERR_DUPLICATE_KEY
            set_steps(o, small_first, small_stop, 1)
            i = s.stop
            continue
        if s.kind == STEP_PUT and (o.present[s.low] or tree_at(o, s.low) > 0):
            return ERR_DUPLICATE_KEY
        set_step(o, s, 1)
        i += 1
    return 0


cdef int check_overlaps(const uint8_t *data, uint64_t size, uint32_t part) noexcept nogil:
    cdef overlap_t o
    cdef int rc
    cdef uint32_t i
    memset(&o, 0, sizeof(o))
    rc = plan_list(&o, data, size, part)
    if rc == 0:
        for i in range(o.count):
            o.put_count += o.steps[i].kind == STEP_PUT
        if o.put_count and o.count > 1:
            o.puts = <step_t **>malloc(o.put_count * sizeof(step_t *))
            o.tree = <int32_t *>calloc(<size_t>o.put_count + 2, sizeof(int32_t))
            o.present = <uint32_t *>calloc(o.put_count, sizeof(uint32_t))
            if o.puts == NULL or o.tree == NULL or o.present == NULL:
                rc = REQUEST_NO_MEMORY
            else:
                rank_steps(&o)
                rc = run_steps(&o, 0, o.count)
    free(o.steps)
    free(o.puts)
    free(o.tree)
    free(o.present)
    return rc


cdef int request_check(int method, const uint8_t *data, uint64_t size, uint32_t txn_ops_max,
                       request_facts *facts) noexcept nogil:
    cdef put_t p
    cdef range_t r
    cdef delete_t d
    cdef txn_facts t
    cdef wire_cursor c
    cdef wire_field f
    cdef uint64_t lease
    cdef int rc
    memset(facts, 0, sizeof(request_facts))
    if method == RPC_PUT:
        if parse_put(data, size, &p) < 0:
            return REQUEST_MALFORMED
        facts.cost = PUT_OVERHEAD_BYTES + p.key.size + p.value_size
        return check_put(&p)
    if method == RPC_RANGE or method == RPC_RANGE_STREAM:
        if parse_range(data, size, &r) < 0:
            return REQUEST_MALFORMED
        facts.read_only = True
        facts.serializable = r.serializable
        rc = check_range(&r)
        if rc or method == RPC_RANGE:
            return rc
        if r.sort_order != 0 and not (r.sort_order == 1 and r.sort_target == 0):
            return ERR_RANGE_STREAM_SORT
        return ERR_RANGE_STREAM_FILTER if r.filtered else 0
    if method == RPC_TXN:
        rc = survey_txn(data, size, 0, &t)
        if rc:
            return rc
        facts.cost = t.cost
        facts.read_only = t.read_only
        facts.serializable = t.serializable
        rc = check_txn(data, size, txn_ops_max)
        if rc or t.puts == 0 or t.puts + t.deletes < 2:
            return rc
        rc = check_overlaps(data, size, TXN_SUCCESS)
        return rc if rc else check_overlaps(data, size, TXN_FAILURE)
    if method == RPC_DELETE_RANGE:
        if parse_delete(data, size, &d) < 0:
            return REQUEST_MALFORMED
        return ERR_EMPTY_KEY if d.key.size == 0 else 0
    if method == RPC_WATCH:
        return parse_watch(data, size)
    if method == RPC_LEASE_GRANT:
        if parse_lease_grant(data, size, &lease) < 0:
            return REQUEST_MALFORMED
        facts.cost = LEASE_COST_BYTES
        facts.new_id = lease == 0
        return 0
    if method == RPC_ELECTION_PROCLAIM or method == RPC_ELECTION_RESIGN:
        return parse_nested(data, size, 1 << 1)
    if is_auth_method(method):
        rc = check_auth(method, data, size)
        return REQUEST_MALFORMED if rc < 0 else rc
    if parse_any(data, size) < 0:
        return REQUEST_MALFORMED
    if method == RPC_COMPACT or method == RPC_MEMBER_LIST:
        facts.serializable = method == RPC_MEMBER_LIST
        c = over(data, size)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.type != WIRE_VARINT:
                continue
            if method == RPC_COMPACT and f.number == 2:
                facts.physical = f.value != 0
            elif method == RPC_MEMBER_LIST and f.number == 1:
                facts.serializable = f.value == 0
    return 0


Verdict = namedtuple("Verdict", "error malformed cost read_only serializable physical new_id")


def check(int method, bytes message not None, uint32_t txn_ops_max=128):
    """Judge one gRPC message of RPC id `method`; see requests.pyi."""
    cdef request_facts facts
    cdef const uint8_t *data = <const uint8_t *><const char *>message
    cdef uint64_t size = len(message)
    cdef int rc
    with nogil:
        rc = request_check(method, data, size, txn_ops_max, &facts)
    if rc == REQUEST_NO_MEMORY:
        raise MemoryError
    return Verdict(max(rc, 0), rc == REQUEST_MALFORMED, facts.cost, bool(facts.read_only),
                   bool(facts.serializable), bool(facts.physical), bool(facts.new_id))
