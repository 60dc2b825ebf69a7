"""The buckets of etcd's backend as key prefixes of one RocksDB column family.

One byte names the bucket and etcd's own key follows, so that all buckets share one column family: with
RocksDB's log off, several families could be flushed apart. The bytes sort as the bucket names do,
which makes a scan of the whole store visit buckets and items in the order of etcd's Hash.

Source: reference/formats.md section 6.1.
"""

ALARM = b"a"
AUTH = b"b"
AUTH_ROLES = b"c"
AUTH_USERS = b"d"
CLUSTER = b"e"
KEY = b"k"
LEASE = b"l"
MEMBERS = b"m"
MEMBERS_REMOVED = b"n"
META = b"o"

# bucket name as etcd hashes it -> prefix, in hash order
NAMES = {
    b"alarm": ALARM,
    b"auth": AUTH,
    b"authRoles": AUTH_ROLES,
    b"authUsers": AUTH_USERS,
    b"cluster": CLUSTER,
    b"key": KEY,
    b"lease": LEASE,
    b"members": MEMBERS,
    b"members_removed": MEMBERS_REMOVED,
    b"meta": META,
}

CONF_STATE = META + b"confState"
SCHEDULED_COMPACT = META + b"scheduledCompactRev"
FINISHED_COMPACT = META + b"finishedCompactRev"
STORAGE_VERSION = META + b"storageVersion"
CLUSTER_VERSION = CLUSTER + b"clusterVersion"
DOWNGRADE = CLUSTER + b"downgrade"
AUTH_ENABLED = AUTH + b"authEnabled"
AUTH_REVISION = AUTH + b"authRevision"

REVISION_KEY_BYTES = 17  # without bucket byte and tombstone mark


def end(prefix: bytes) -> bytes:
    """The first key behind every key of the bucket."""
    return bytes([prefix[0] + 1])


def is_revision(key: bytes) -> bool:
    """Whether a stored key of bucket `key` is a revision (and not an applied record, b"k" + BE64 + 0xff)."""
    return len(key) > 9 and key[9] == 0x5F
