"""`snapshot restore`: the data directory of one member of a new cluster, out of a snapshot file.

The database is not copied but read and written anew: every page of the source is checked on the way, and the result
is dense. The directory appears with its last step, a rename; whatever fails before leaves nothing.
Source: formats.md 8.3.
"""

import os
import shutil
from types import SimpleNamespace

from etcdfast.cluster import membership
from etcdfast.config import checks, values
from etcdfast.formats import backend, bbolt, memberid, snapfile, wal
from etcdfast.formats.raftpb import encode_conf_change, encode_conf_state, put_uint
from etcdfast.utl import flags, output
from etcdfast.utl.errors import UsageError, UtlError
from etcdfast.utl.status import open_database

CONF_CHANGE = 1  # raftpb.EntryType
FIRST_TERM = 1
REVISION_MAX = (1 << 63) - 1


def snapshot_restore(options, arguments):
    flags.require(options, "data-dir")
    source = arguments[0]
    if bool(options["bump-revision"]) != options["mark-compacted"]:
        raise UsageError("--bump-revision and --mark-compacted go together: the revisions left out must be compacted")
    members, own = _members(options)
    data_dir = options["data-dir"]
    wal_dir = options["wal-dir"] or os.path.join(data_dir, "member", "wal")
    _check_empty("data-dir", data_dir)
    if options["wal-dir"]:
        _check_empty("wal-dir", wal_dir, "exists")
    output.say(f"restoring snapshot {source} to data directory {data_dir}, write-ahead log {wal_dir}")
    building = os.path.join(data_dir, "member.part")
    # A directory that was there may be the mount point of a volume: it stays.
    made = [path for path in (data_dir, wal_dir) if not os.path.isdir(path)]
    try:
        snap_dir = os.path.join(building, "snap")
        for path in (data_dir, building, snap_dir):
            os.makedirs(path, mode=0o700, exist_ok=path == data_dir)
        with open_database(source) as reader:
            if not options["skip-hash-check"]:
                check_digest(reader)
            write_database(reader, os.path.join(snap_dir, "db"), members, options["bump-revision"])
        data = membership.Membership([m._replace(name="") for m in members]).to_v2()
        conf_state = membership.Membership(members).conf_state()
        snapfile.write(snap_dir, data, conf_state, len(members), FIRST_TERM)
        _write_wal(wal_dir if options["wal-dir"] else os.path.join(building, "wal"), members, own)
        _sync(building)
        os.rename(building, os.path.join(data_dir, "member"))
        _sync(data_dir)
    except BaseException:
        for left in (building, *made):
            shutil.rmtree(left, ignore_errors=True)
        if options["wal-dir"] and wal_dir not in made:
            for segment in wal.list_segments(wal_dir):
                os.unlink(segment.path)
        raise
    cluster_id = memberid.cluster_id([member.id for member in members])
    count = f"{len(members)} member" + "s" * (len(members) != 1)
    output.say(f"restored snapshot: member {own.id:x} ({own.name}) of cluster {cluster_id:x} with {count}")


def _members(options):
    """([Member] by id, the own one) out of the flags. Errors: UtlError, in etcd's words."""
    try:
        pairs = values.cluster_map(options["initial-cluster"])
        advertised = values.urls(options["initial-advertise-peer-urls"])
    except ValueError as err:
        raise UtlError(str(err)) from None
    if not pairs:
        raise UtlError(f"couldn't find local name {values.quote(options['name'])} in the initial cluster configuration")
    try:
        checks.check_bootstrap(
            SimpleNamespace(
                name=options["name"],
                initial_cluster=",".join(f"{name}={url}" for name, urls in pairs for url in urls),
                initial_members=pairs,
                initial_cluster_state="new",
                initial_advertise_peer_urls=advertised,
            )
        )
    except checks.ConfigError as err:
        raise UtlError(str(err)) from None
    token = options["initial-cluster-token"]
    members = [membership.Member(memberid.member_id(peers, token), name, peers) for name, peers in pairs]
    return sorted(members), next(member for member in members if member.name == options["name"])


def _check_empty(flag, path, otherwise="not empty or could not be read"):
    try:
        empty = not os.path.lexists(path) or not os.listdir(path)
    except OSError:
        empty = False
    if not empty:
        raise UtlError(f"{flag} {values.quote(path)} {otherwise}")


def check_digest(reader):
    """The SHA-256 behind the database is there and right. Errors: UtlError."""
    size = os.fstat(reader.fd).st_size
    if not bbolt.has_digest(size):
        raise UtlError("snapshot missing hash but --skip-hash-check=false")
    covered = size - bbolt.DIGEST_BYTES
    found = bbolt.digest_of(reader.fd, covered)
    expected = os.pread(reader.fd, bbolt.DIGEST_BYTES, covered)
    if found != expected:
        raise UtlError(f"expected sha256 {expected.hex()}, got {found.hex()}: the file was changed after it was saved")


# ---- the database ---------------------------------------------------------------------------------


def write_database(reader, path, members, bump_revision=0):
    """The buckets of `reader` in a new file, with the members of a new cluster in place of the old ones.

    Errors: UtlError, BoltError, OSError.
    """
    if b"key" not in reader.buckets() or b"meta" not in reader.buckets():
        raise UtlError(f"{reader.path} is no database of etcd: it has no buckets key and meta")
    meta = dict(reader.items(b"meta"))
    # The state is that of the new log's last entry: the configuration changes that made its members.
    meta[b"consistent_index"] = len(members).to_bytes(8, "big")
    meta[b"term"] = FIRST_TERM.to_bytes(8, "big")
    if b"confState" in meta:
        meta[b"confState"] = backend.conf_state_json([member.id for member in members])
    bumped = None
    if bump_revision:
        revision = max(1, reader.status().revision) + bump_revision
        if revision > REVISION_MAX:
            raise UtlError(f"--bump-revision {bump_revision}: the revision would be {revision}, too large for etcd")
        bumped = meta[b"scheduledCompactRev"] = backend.revision_key(revision)
    replaced = {
        b"members": {b"%x" % member.id: membership.member_json(member) for member in members},
        b"members_removed": {},
        b"meta": meta,
    }
    with bbolt.Writer(path) as writer, output.Progress("restoring", reader.size) as progress:
        for name in sorted({*reader.buckets(), *replaced}):
            if name in replaced:
                writer.bucket(name, sorted(replaced[name].items()))
                continue
            writer.begin_bucket(name)
            for batch in reader.batches(name):
                writer.put_many(batch)
                progress.add(sum(len(value) + 17 for _, value in batch))
            if name == b"key" and bumped:
                writer.put(bumped, b"")
            writer.end_bucket()
        writer.finish()


# ---- the log --------------------------------------------------------------------------------------


def _write_wal(directory, members, own):
    ids = [member.id for member in members]
    metadata = put_uint(1, own.id) + put_uint(2, memberid.cluster_id(ids))
    entries = []
    for index, member in enumerate(members, 1):
        change = membership.bootstrap_change(member.id, member.peer_urls, member.name)
        entries.append((CONF_CHANGE, FIRST_TERM, index, encode_conf_change(change)))
    conf_state = encode_conf_state(membership.Membership(members).conf_state())
    state = (FIRST_TERM, ids[0], len(members))
    wal.write_once(directory, metadata, entries, state, (len(members), FIRST_TERM, conf_state))


def _sync(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
