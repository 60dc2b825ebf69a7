"""Put, DeleteRange and Txn; see kvops.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from etcdfast._ext.authlease cimport auth_may_write_lease
from etcdfast._ext.authtable cimport AuthTable, auth_may_read, auth_may_write
from etcdfast._ext.errids cimport (
    ERR_COMPACTED, ERR_CORRUPT, ERR_FUTURE_REV, ERR_KEY_NOT_FOUND, ERR_LEASE_NOT_FOUND, ERR_NO_SPACE,
    ERR_NONE, ERR_TOO_MANY_OPS,
)
from etcdfast._ext.kvenc cimport header_size, parse_keyvalue, put_header, stored_kv
from etcdfast._ext.kvreq cimport (
    COMPARE_CREATE, COMPARE_EQUAL, COMPARE_GREATER, COMPARE_LEASE, COMPARE_LESS, COMPARE_MOD,
    COMPARE_NOT_EQUAL, COMPARE_VALUE, COMPARE_VERSION, OP_DELETE, OP_NONE, OP_PUT, OP_RANGE, OP_TXN,
    TXN_COMPARE, TXN_FAILURE, TXN_SUCCESS, bytes_view, compare_op, cursor_at, decode_compare, decode_delete,
    decode_op, decode_put, decode_range, delete_request, put_request, range_request, whole_tail,
)
from etcdfast._ext.meters cimport M_DELETES, M_PUT_BYTES, M_PUTS, M_RANGES, M_TXNS, meter_count
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport (
    outbuf, outbuf_bytes_field, outbuf_close, outbuf_free, outbuf_init, outbuf_open, outbuf_reserve,
    outbuf_uint_field,
)
from etcdfast._ext.rangeread cimport range_whole
from etcdfast._ext.revindex cimport IDX_NOT_FOUND, SCAN_DONE, KeyInfo, Scan
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MORE, wire_cursor, wire_field, wire_next, wire_put_varint, wire_varint_size,
)

from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast._ext.rangeread import RangeTooLarge

cdef enum:
    COMPARE_BATCH_KEYS = 64
    DEPTH_MAX = 512     # of nested transactions: each level takes C stack


cdef class KvOps:

    def __cinit__(self, Mvcc mvcc):
        self.mvcc = mvcc
        self.auth = AuthTable()
        self.caller.free = True
        self.alarms = 0
        self.ids.cluster = self.ids.member = self.ids.term = 0
        outbuf_init(&self.path)
        outbuf_init(&self.deletes)

    def __dealloc__(self):
        outbuf_free(&self.path)
        outbuf_free(&self.deletes)

    cdef void header(self, outbuf *out, int64_t revision) noexcept nogil:
        """The full ResponseHeader as field 1."""
        cdef uint64_t size = header_size(&self.ids, revision)
        cdef uint8_t *p = outbuf_reserve(out, size + 2)
        if p == NULL:
            return
        p[0] = 1 << 3 | WIRE_BYTES
        p[1] = <uint8_t>size  # four varints: always below 128
        p = put_header(p + 2, &self.ids, revision)
        out.size = <uint64_t>(p - out.data)

    cdef void nested_header(self, outbuf *out, int64_t revision) noexcept nogil:
        """Inside a transaction etcd fills in the revision only."""
        cdef uint64_t mark = outbuf_open(out, 1)
        outbuf_uint_field(out, 3, <uint64_t>revision)
        outbuf_close(out, mark)

    cdef bint lease_exists(self, int64_t lease) noexcept nogil:
        return self.leases is not None and self.leases.find(lease) != NULL

    cdef void count_txn(self) noexcept nogil:
        """The end of a transaction in etcd's sense: what it did is counted, and itself if that was more than one."""
        meter_count(M_RANGES, self.ranges)
        if self.ranges + self.writes > 1:
            meter_count(M_TXNS, 1)
        self.ranges = self.writes = 0

    # ---- permissions ----

    cdef int may_put(self, const put_request *r) noexcept nogil:
        cdef int error = auth_may_write(&self.caller, r.key.data, r.key.size, NULL, 0)
        if error == 0:
            # Whoever may not end the lease must not make this key end with it.
            error = auth_may_write_lease(self.leases, &self.caller, r.lease)
        if error == 0 and r.prev_kv:
            error = auth_may_read(&self.caller, r.key.data, r.key.size, NULL, 0)
        return error

    cdef int may_delete(self, const delete_request *r) noexcept nogil:
        cdef int error = auth_may_write(&self.caller, r.key.data, r.key.size, r.end.data, r.end.size)
        if error == 0 and r.prev_kv:
            error = auth_may_read(&self.caller, r.key.data, r.key.size, r.end.data, r.end.size)
        return error

    cdef int may_txn(self, const bytes_view *message, int depth) noexcept nogil:
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view part, inner
        cdef compare_op compare
        cdef put_request put
        cdef range_request query
        cdef delete_request deletion
        cdef int kind, rc
        cdef int error = 0
        if depth > DEPTH_MAX:
            return ERR_TOO_MANY_OPS
        cursor_at(&c, message)
        while error == 0:
            rc = wire_next(&c, &f)
            if rc == WIRE_END:
                return 0
            if rc < 0:
                return OPS_MALFORMED
            if f.type != WIRE_BYTES:
                continue
            part.data = f.data
            part.size = f.size
            if f.number == TXN_COMPARE:
                if decode_compare(&part, &compare) < 0:
                    return OPS_MALFORMED
                error = auth_may_read(
                    &self.caller, compare.key.data, compare.key.size, compare.end.data, compare.end.size)
            elif f.number == TXN_SUCCESS or f.number == TXN_FAILURE:
                kind = decode_op(&part, &inner)
                if kind == OP_RANGE:
                    if decode_range(&inner, &query) < 0:
                        return OPS_MALFORMED
                    error = auth_may_read(&self.caller, query.key.data, query.key.size, query.end.data, query.end.size)
                elif kind == OP_PUT:
                    if decode_put(&inner, &put) < 0:
                        return OPS_MALFORMED
                    error = self.may_put(&put)
                elif kind == OP_DELETE:
                    if decode_delete(&inner, &deletion) < 0:
                        return OPS_MALFORMED
                    error = self.may_delete(&deletion)
                elif kind == OP_TXN:
                    error = self.may_txn(&inner, depth + 1)
                elif kind < 0:
                    return OPS_MALFORMED
        return error

    # ---- single writes ----

    cdef int put(self, const bytes_view *message, outbuf *out) except OPS_FAILED:
        cdef put_request r
        cdef int error
        if decode_put(message, &r) < 0:
            return OPS_MALFORMED
        if self.alarms:
            return ERR_CORRUPT if self.alarms & ALARM_CORRUPT else ERR_NO_SPACE
        if not self.caller.free:
            error = self.may_put(&r)
            if error:
                return error
        if r.lease != 0 and not self.lease_exists(r.lease):
            return ERR_LEASE_NOT_FOUND
        self.mvcc.begin()
        error = self.do_put(&r, out, False)
        self.mvcc.commit()
        self.count_txn()
        return error

    cdef int delete_range(self, const bytes_view *message, outbuf *out) except OPS_FAILED:
        cdef delete_request r
        cdef int error
        if decode_delete(message, &r) < 0:
            return OPS_MALFORMED
        if self.alarms & ALARM_CORRUPT:
            return ERR_CORRUPT
        if not self.caller.free:
            error = self.may_delete(&r)
            if error:
                return error
        self.mvcc.begin()
        error = self.do_delete(&r, out, False)
        self.mvcc.commit()
        self.count_txn()
        return error

    cdef int do_put(self, const put_request *r, outbuf *out, bint nested) except OPS_FAILED:
        cdef KeyInfo info
        cdef stored_kv kv
        cdef bytes old = None
        cdef bytes_view value = r.value
        cdef int64_t lease = r.lease
        if r.prev_kv or r.ignore_value or r.ignore_lease:
            self.ranges += 1
            if self.mvcc.index.get(<const char *>r.key.data, <uint32_t>r.key.size, 0, &info) == 0:
                old = self.mvcc.fetch(info.mod_main, info.mod_sub)
                if parse_keyvalue(PyBytes_AS_STRING(old), <uint64_t>PyBytes_GET_SIZE(old), &kv) < 0:
                    raise StoreCorrupt(f"revision {info.mod_main}_{info.mod_sub} holds no KeyValue")
                if r.ignore_value:
                    value.data = kv.value
                    value.size = kv.value_len
                if r.ignore_lease:
                    lease = kv.lease
            elif r.ignore_value or r.ignore_lease:
                return ERR_KEY_NOT_FOUND
        if nested:
            self.nested_header(out, self.mvcc.current + 1)
        else:
            self.header(out, self.mvcc.current + 1)
        if r.prev_kv and old is not None:
            outbuf_bytes_field(out, 2, PyBytes_AS_STRING(old), <uint64_t>PyBytes_GET_SIZE(old))
        self.mvcc.put(&r.key, &value, lease)
        self.writes += 1
        meter_count(M_PUTS, 1)
        meter_count(M_PUT_BYTES, r.key.size + value.size)
        return ERR_NONE

    cdef int do_delete(self, const delete_request *r, outbuf *out, bint nested) except OPS_FAILED:
        cdef int64_t count
        cdef int64_t revision
        self.writes += 1
        self.ranges += r.prev_kv
        meter_count(M_DELETES, 1)
        count = self.mvcc.index.count(<const char *>r.key.data, <uint32_t>r.key.size,
                                      <const char *>r.end.data, <uint32_t>r.end.size, 0)
        revision = self.mvcc.current + (1 if count or self.mvcc.sub else 0)
        if nested:
            self.nested_header(out, revision)
        else:
            self.header(out, revision)
        if count:
            outbuf_uint_field(out, 2, <uint64_t>count)
            if r.prev_kv:
                self.put_previous(r, out)
            self.mvcc.delete_range(&r.key, &r.end)
        return ERR_NONE

    cdef int put_previous(self, const delete_request *r, outbuf *out) except OPS_FAILED:
        """prev_kvs of a DeleteRangeResponse, field 3."""
        cdef KeyInfo found[COMPARE_BATCH_KEYS]
        cdef Scan scan
        cdef bytes resume = None
        cdef bytes record
        cdef int count, i
        while True:
            count = self.next_keys(&r.key, &r.end, resume, 0, found, &scan)
            for i in range(count):
                record = self.mvcc.fetch(found[i].mod_main, found[i].mod_sub)
                outbuf_bytes_field(out, 3, PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record))
            if scan.state == SCAN_DONE:
                return ERR_NONE
            resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)

    cdef int next_keys(
        self, const bytes_view *key, const bytes_view *end, bytes resume, int64_t at_rev, void *found, void *scan
    ) except OPS_FAILED:
        cdef int count
        if resume is None:
            count = self.mvcc.index.range_batch(
                <const char *>key.data, <uint32_t>key.size, False, <const char *>end.data, <uint32_t>end.size,
                at_rev, <KeyInfo *>found, COMPARE_BATCH_KEYS, 1 << 30, <Scan *>scan)
        else:
            count = self.mvcc.index.range_batch(
                PyBytes_AS_STRING(resume), <uint32_t>PyBytes_GET_SIZE(resume), True, <const char *>end.data,
                <uint32_t>end.size, at_rev, <KeyInfo *>found, COMPARE_BATCH_KEYS, 1 << 30, <Scan *>scan)
        if count < 0:
            raise StoreCorrupt(f"revision index: error {count}")
        return count

    # ---- transactions ----

    cdef int txn(self, const bytes_view *message, bint read_only, outbuf *out) except OPS_FAILED:
        cdef uint64_t start = out.size
        cdef uint64_t size, total
        cdef uint8_t *p
        cdef int64_t revision
        cdef int error
        # Reads stay possible on a corrupt member, as in etcd: operators look at it and save what it has.
        if self.alarms & ALARM_CORRUPT and not read_only:
            return ERR_CORRUPT
        if self.alarms & ALARM_NOSPACE and self.has_put(message):
            return ERR_NO_SPACE
        if not self.caller.free:
            error = self.may_txn(message, 0)
            if error:
                return error
        self.mvcc.begin()
        # A read may come between two slices of a revoke, whose tombstones are in the index already.
        self.compared_at = self.mvcc.current if read_only else 0
        self.path.size = 0
        self.path.failed = False
        error = self.choose(message, 0)
        if error:
            self.count_txn()
            return error
        # etcd looks at all puts before it looks at any range: that decides which of two errors is told.
        self.path_at = 0
        self.deletes.size = 0
        self.deletes.failed = False
        error = 0 if read_only else self.check(message, OP_PUT)
        if error == 0:
            self.path_at = 0
            error = self.check(message, OP_RANGE)
        if error or not read_only:
            self.count_txn()   # etcd compares and checks in a transaction of its own when it will write
        if error:
            return error
        self.path_at = 0
        error = self.execute(message, out, 1 if read_only else 2)
        if error:
            if self.mvcc.sub:
                raise AssertionError(f"a transaction failed after its checks: error {error}")
            return error
        self.count_txn()
        self.mvcc.commit()
        revision = self.mvcc.current
        # The header comes first and is known last.
        size = header_size(&self.ids, revision)
        if outbuf_reserve(out, size + 2) != NULL:
            p = out.data + start
            total = out.size - start
            memmove(p + size + 2, p, total)
            p[0] = 1 << 3 | WIRE_BYTES
            p[1] = <uint8_t>size
            put_header(p + 2, &self.ids, revision)
            out.size += size + 2
        return ERR_NONE

    cdef bint has_put(self, const bytes_view *message) noexcept nogil:
        """Whether either list holds a put itself: what etcd's quota counts, nested ones it does not."""
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view op, inner
        cursor_at(&c, message)
        while wire_next(&c, &f) == WIRE_MORE:
            if (f.number == TXN_SUCCESS or f.number == TXN_FAILURE) and f.type == WIRE_BYTES:
                op.data = f.data
                op.size = f.size
                if decode_op(&op, &inner) == OP_PUT:
                    return True
        return False

    cdef int choose(self, const bytes_view *message, int depth) except OPS_FAILED:
        """Append the branch taken of this transaction, then of those in that branch, to the path."""
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view part, inner
        cdef compare_op compare
        cdef bint succeeded = True
        cdef uint8_t *p
        cdef int rc
        if depth > DEPTH_MAX:
            return ERR_TOO_MANY_OPS
        cursor_at(&c, message)
        while True:
            rc = wire_next(&c, &f)
            if rc == WIRE_END:
                break
            if rc < 0:
                return OPS_MALFORMED
            if f.number == TXN_COMPARE and f.type == WIRE_BYTES and succeeded:
                part.data = f.data
                part.size = f.size
                if decode_compare(&part, &compare) < 0:
                    return OPS_MALFORMED
                succeeded = self.holds(&compare)
        p = outbuf_reserve(&self.path, 1)
        if p == NULL:
            raise MemoryError
        p[0] = TXN_SUCCESS if succeeded else TXN_FAILURE
        self.path.size += 1
        cursor_at(&c, message)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.type == WIRE_BYTES and f.number == <uint32_t>(TXN_SUCCESS if succeeded else TXN_FAILURE):
                part.data = f.data
                part.size = f.size
                rc = decode_op(&part, &inner)
                if rc < 0:
                    return OPS_MALFORMED
                if rc == OP_TXN:
                    rc = self.choose(&inner, depth + 1)
                    if rc != 0:
                        return rc
        return 0

    cdef int holds(self, const compare_op *c) except OPS_FAILED:
        """Whether one Compare holds for every key it names, in the state before the transaction."""
        cdef KeyInfo found[COMPARE_BATCH_KEYS]
        cdef Scan scan
        cdef bytes resume = None
        cdef bint any_key = False
        cdef int count, i
        cdef stored_kv kv
        cdef bytes record
        self.ranges += 1
        while True:
            count = self.next_keys(&c.key, &c.end, resume, self.compared_at, found, &scan)
            for i in range(count):
                any_key = True
                kv.create = found[i].create_main
                kv.mod = found[i].mod_main
                kv.version = found[i].version
                kv.lease = 0
                kv.value = NULL
                kv.value_len = 0
                if c.target == COMPARE_VALUE or c.target == COMPARE_LEASE:
                    record = self.mvcc.fetch(found[i].mod_main, found[i].mod_sub)
                    if parse_keyvalue(PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), &kv) < 0:
                        raise StoreCorrupt(f"revision {found[i].mod_main}_{found[i].mod_sub} holds no KeyValue")
                if not compare_holds(c, &kv):
                    return 0
            if scan.state == SCAN_DONE:
                break
            resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
        if any_key:
            return 1
        if c.target == COMPARE_VALUE:
            return 0
        kv.create = kv.mod = kv.version = kv.lease = 0
        kv.value = NULL
        kv.value_len = 0
        return compare_holds(c, &kv)

    cdef int check(self, const bytes_view *message, int op) except OPS_FAILED:
        """Check every operation of kind `op` in the branches taken. ERR_ id, or OPS_MALFORMED."""
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view part, inner
        cdef uint32_t branch = self.path.data[self.path_at]
        cdef int kind
        cdef int error
        self.path_at += 1
        cursor_at(&c, message)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.number != branch or f.type != WIRE_BYTES:
                continue
            part.data = f.data
            part.size = f.size
            kind = decode_op(&part, &inner)
            if kind == OP_TXN:
                error = self.check(&inner, op)
            elif kind == OP_NONE or kind == OP_PUT or kind == OP_RANGE or kind == OP_DELETE:
                error = self.check_op(kind, &inner) if kind == op or kind == OP_DELETE else 0
            else:
                return OPS_MALFORMED
            if error != 0:
                return error
        return 0

    cdef int check_op(self, int op, const bytes_view *inner) except OPS_FAILED:
        cdef put_request put
        cdef range_request query
        cdef delete_request deletion
        cdef KeyInfo info
        cdef uint8_t *p
        if op == OP_DELETE:
            if decode_delete(inner, &deletion) < 0:
                return OPS_MALFORMED
            p = outbuf_reserve(&self.deletes, sizeof(delete_request))
            if p == NULL:
                raise MemoryError
            memcpy(p, &deletion, sizeof(delete_request))
            self.deletes.size += sizeof(delete_request)
            return 0
        if op == OP_RANGE:
            if decode_range(inner, &query) < 0:
                return OPS_MALFORMED
            if query.revision > self.mvcc.current:
                return ERR_FUTURE_REV
            # A negative revision is below the -1 of a store that was never compacted, as in etcd.
            if query.revision != 0 and query.revision < self.mvcc.compacted:
                return ERR_COMPACTED
            return 0
        if decode_put(inner, &put) < 0:
            return OPS_MALFORMED
        if put.ignore_value or put.ignore_lease:
            self.ranges += 1
            if self.mvcc.index.get(<const char *>put.key.data, <uint32_t>put.key.size, 0, &info) != 0:
                return ERR_KEY_NOT_FOUND
            # The API lets some deletes of a key that is put later pass; etcd then dies of it.
            if self.deleted_before(&put.key):
                return ERR_KEY_NOT_FOUND
        if put.lease != 0 and not self.lease_exists(put.lease):
            return ERR_LEASE_NOT_FOUND
        return 0

    cdef bint deleted_before(self, const bytes_view *key) noexcept nogil:
        """Whether a delete that comes earlier in the transaction covers the key."""
        cdef const delete_request *deletion = <const delete_request *>self.deletes.data
        cdef uint64_t count = self.deletes.size // sizeof(delete_request)
        cdef uint64_t i
        for i in range(count):
            if deletion[i].end.size == 0:
                if view_compare(key, &deletion[i].key) == 0:
                    return True
            elif view_compare(key, &deletion[i].key) >= 0 and (
                    whole_tail(&deletion[i].end) or view_compare(key, &deletion[i].end) < 0):
                return True
        return False

    cdef int execute(self, const bytes_view *message, outbuf *out, uint64_t top) except OPS_FAILED:
        """Carry out the branch taken and write succeeded and responses; top: 0 nested, 1 read only, 2 writes."""
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view part, inner
        cdef put_request put
        cdef range_request query
        cdef delete_request deletion
        cdef uint32_t branch = self.path.data[self.path_at]
        cdef uint64_t op_mark, mark
        cdef int kind, error
        self.path_at += 1
        if branch == TXN_SUCCESS:
            outbuf_uint_field(out, 2, 1)
        cursor_at(&c, message)
        while wire_next(&c, &f) == WIRE_MORE:
            if f.number != branch or f.type != WIRE_BYTES:
                continue
            part.data = f.data
            part.size = f.size
            kind = decode_op(&part, &inner)
            if top == 1 and kind != OP_RANGE:
                return OPS_MALFORMED  # a read-only transaction does not hold writes
            op_mark = outbuf_open(out, 3)
            if kind != OP_NONE:
                mark = outbuf_open(out, <uint32_t>kind)
                error = 0
                if kind == OP_PUT:
                    decode_put(&inner, &put)
                    error = self.do_put(&put, out, True)
                elif kind == OP_DELETE:
                    decode_delete(&inner, &deletion)
                    error = self.do_delete(&deletion, out, True)
                elif kind == OP_RANGE:
                    decode_range(&inner, &query)
                    error = self.do_range(&query, out)
                else:
                    outbuf_close(out, outbuf_open(out, 1))
                    error = self.execute(&inner, out, 0)
                if error != 0:
                    return error
                outbuf_close(out, mark)
            outbuf_close(out, op_mark)
        return 0

    cdef int do_range(self, const range_request *r, outbuf *out) except OPS_FAILED:
        self.ranges += 1
        self.nested_header(out, self.mvcc.visible())
        try:
            range_whole(self.mvcc, r, out)
        except RangeTooLarge:
            # What the transaction changes must not depend on how much memory its answer takes.
            out.failed = True
        return 0


cdef int view_compare(const bytes_view *a, const bytes_view *b) noexcept nogil:
    cdef int order = memcmp(a.data, b.data, a.size if a.size < b.size else b.size)
    return order if order else (a.size > b.size) - (a.size < b.size)


cdef bint compare_holds(const compare_op *c, const stored_kv *kv) noexcept nogil:
    """One key against one Compare. A union field that does not fit the target counts as not given."""
    cdef int order = 0
    cdef int64_t stored = 0
    cdef int64_t wanted = c.number if c.union_field == <uint32_t>(c.target + 4) else 0
    cdef uint64_t size
    if c.target == COMPARE_VALUE:
        size = c.value.size if c.union_field == 7 else 0
        order = memcmp(kv.value, c.value.data, kv.value_len if kv.value_len < size else size)
        if order == 0:
            order = (kv.value_len > size) - (kv.value_len < size)
    elif COMPARE_VERSION <= c.target <= COMPARE_LEASE:
        if c.target == COMPARE_VERSION:
            stored = kv.version
        elif c.target == COMPARE_CREATE:
            stored = kv.create
        elif c.target == COMPARE_MOD:
            stored = kv.mod
        else:
            stored = kv.lease
        order = (stored > wanted) - (stored < wanted)
    if c.result == COMPARE_EQUAL:
        return order == 0
    if c.result == COMPARE_NOT_EQUAL:
        return order != 0
    if c.result == COMPARE_GREATER:
        return order > 0
    if c.result == COMPARE_LESS:
        return order < 0
    return True
