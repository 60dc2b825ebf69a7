"""Hash and HashKV: the CRC-32C of a store, equal on every member that applied the same log.

Both walk the store in slices: each function is a generator that yields None after a slice, so that
writes go on between slices, and returns its result. The walk reads one RocksDB iterator, whose view
does not move; what it asks of the index stays valid while its pin holds back compaction.

Source: reference/formats.md section 9.5 (the newest rules).
"""

from struct import unpack_from

from etcdfast._ext import crc32c, wire
from etcdfast.apply import buckets

SLICE_ITEMS = 512  # about half a millisecond


def hash_kv(engine, revision, compacted):
    """CRC of the key bucket at `revision`, as etcd computes it with `compacted` as compacted revision.

    Precondition: max(compacted, 0) <= revision <= current revision, or revision < 0 (nothing hashed).
    """
    crc = crc32c.update(0, b"key")
    if revision < 0:
        return crc
    keep_some = compacted >= 0 and engine.kept_any(revision)
    end = buckets.KEY + (revision + 1).to_bytes(8, "big")
    items = 0
    for key, value in engine.store.scan(buckets.KEY, end):
        items += 1
        if items % SLICE_ITEMS == 0:
            yield None
        if not buckets.is_revision(key):
            continue
        if key[1:9] <= _main(compacted):
            main, sub = unpack_from(">Q", key, 1)[0], unpack_from(">Q", key, 10)[0]
            if len(key) == 19 and main == compacted:
                continue
            if keep_some and not engine.kept_at(_user_key(value), main, sub, revision):
                continue
        crc = crc32c.update(crc32c.update(crc, key[1:]), value)
    return crc


def hash_store(engine):
    """CRC of every bucket name and all its items, as etcd's Hash: for tests of equality, nothing else."""
    crc = 0
    items = 0
    for name, prefix in buckets.NAMES.items():
        crc = crc32c.update(crc, name)
        for key, value in engine.store.scan(prefix, buckets.end(prefix)):
            items += 1
            if items % SLICE_ITEMS == 0:
                yield None
            if key == buckets.STORAGE_VERSION or (prefix == buckets.KEY and not buckets.is_revision(key)):
                continue
            crc = crc32c.update(crc32c.update(crc, key[1:]), value)
    return crc


def _main(revision):
    return max(revision, 0).to_bytes(8, "big")


def _user_key(value):
    # The key is field 1 of KeyValue and its first bytes; absent means empty.
    if not value or value[0] != 0x0A:
        return b""
    size = value[1]
    if size < 0x80:
        return value[2 : 2 + size]
    return wire.fields(value)[0][2]
