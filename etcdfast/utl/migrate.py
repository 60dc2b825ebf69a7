"""`migrate`: from etcd to etcdfast, and back.

To etcdfast, in place: etcdfast opens etcd's data directory by itself; here everything is checked first, and the
import of the database, which else happens at the first start, is done.

To etcd, into a new directory: the store as a bbolt database, and a log that begins at exactly its raft index. What
the old log holds behind that index (entries that were not committed, as a rule none) goes along, and so do term and
vote: the member stays the same to the rest of its cluster. Source: formats.md 8.6.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

from etcdfast.cluster import entries as own_entries
from etcdfast.cluster import membership
from etcdfast.formats import bbolt, snapfile, wal
from etcdfast.formats.raftpb import encode_conf_state, put_uint
from etcdfast.utl import datadir, flags, output
from etcdfast.utl.errors import UsageError, UtlError

TARGETS = ("etcd", "etcdfast")
VERSIONS = ("3.4", "3.5", "3.6", "3.7")


def migrate(options, arguments):
    flags.require(options, "data-dir", "target")
    if options["target"] not in TARGETS:
        raise UsageError(f"--target {options['target']}: expected etcd or etcdfast")
    layout = datadir.Layout(options["data-dir"], options["wal-dir"])
    kind = layout.kind()
    if kind is None:
        raise UtlError(f"{layout.data_dir} holds neither a database of etcd ({layout.db}) nor a store ({layout.store})")
    if options["target"] == "etcdfast":
        return _to_etcdfast(layout, kind, options["dry-run"])
    if kind == "etcd":
        print(f"{layout.data_dir} is a data directory of etcd already: nothing to do")
        return 0
    return _to_etcd(layout, options)


# ---- to etcdfast ----------------------------------------------------------------------------------


def _to_etcdfast(layout, kind, dry_run):
    if kind == "etcdfast":
        print(f"{layout.data_dir} is a data directory of etcdfast already: nothing to do")
        return 0
    with bbolt.Reader(layout.db) as reader:  # locked: no etcd has it open
        reader.check()
        status = reader.status()
        if b"key" not in reader.buckets():
            raise UtlError(f"{layout.db} is no database of etcd: it has no bucket key")
        index = _number(reader.get(b"meta", b"consistent_index"))
    raft = datadir.read_raft(layout)
    last = raft.log.position[2]
    snapshot_index = raft.snapshot[2] if raft.snapshot else 0
    sent = os.path.join(layout.snap, f"{snapshot_index:016x}.snap.db")
    if index < snapshot_index and not os.path.exists(sent):
        raise UtlError(
            f"{layout.db} goes up to raft index {index}, but the log begins at {snapshot_index}: it is too old"
        )
    if index > last:
        raise UtlError(
            f"{layout.db} goes up to raft index {index}, but the log ends at {last}: they do not belong together"
        )
    print(f"member {raft.member_id:x} of cluster {raft.cluster_id:x}: log and database are sound")
    print(f"revision {status.revision}, {status.total_keys} items, {output.human_bytes(status.total_bytes)}")
    print(f"raft: database up to index {index}, {last - index} entries of the log behind it")
    if dry_run:
        return 0
    with datadir.lock(layout):
        asked = {"store": layout.store, "snap_dir": layout.snap, "snapshot_index": snapshot_index}
        _run_helper("importing", asked)
    print(f"imported: start etcdfast with --data-dir {layout.data_dir} and the flags that etcd had")
    return 0


# ---- to etcd --------------------------------------------------------------------------------------


def _to_etcd(layout, options):
    target = options["target-version"]
    if target not in VERSIONS:
        raise UsageError(f"--target-version {target}: expected one of {', '.join(VERSIONS)}")
    out = datadir.Layout(options["output-dir"] or layout.data_dir.rstrip("/") + ".etcd")
    if os.path.lexists(out.data_dir) and (not os.path.isdir(out.data_dir) or os.listdir(out.data_dir)):
        raise UtlError(f'output-dir "{out.data_dir}" not empty or could not be read')
    with datadir.lock(layout):
        raft = datadir.read_raft(layout)
        made = [] if os.path.isdir(out.data_dir) else [out.data_dir]
        building = datadir.Layout(out.data_dir)
        building.member = os.path.join(out.data_dir, "member.part")
        building.snap = os.path.join(building.member, "snap")
        building.wal = os.path.join(building.member, "wal")
        building.db = os.path.join(building.snap, "db")
        try:
            for path in (out.data_dir, building.member, building.snap):
                os.makedirs(path, mode=0o700, exist_ok=path == out.data_dir)
            told = _write_member(layout, raft, building, target, options["force"])
            os.rename(building.member, out.member)
        except BaseException:
            for left in (building.member, *made):
                shutil.rmtree(left, ignore_errors=True)
            raise
    print(f"member {raft.member_id:x} of cluster {raft.cluster_id:x}, {told}")
    print(
        f"wrote {out.data_dir}: start etcd {target} with --data-dir {out.data_dir} and the flags that this member had;"
    )
    print(f"never start {layout.data_dir} again after that: they are the same member")
    return 0


def _write_member(layout, raft, building, target, force):
    """Database, snapshot file and log of a member of etcd. Returns words about them."""
    with tempfile.TemporaryDirectory(dir=building.member, prefix="export") as folder:
        exported = os.path.join(folder, "db")
        result = _run_helper("export", {"store": layout.store, "path": exported})
        index, term = result["index"], result["term"]
        if not index:
            raise UtlError(f"the member in {layout.data_dir} has never started: it has nothing to migrate")
        with bbolt.Reader(exported) as reader:
            members, replaced = _settle_version(reader, target, force)
            _copy(reader, building.db, replaced)
    state = raft.log.state
    snapshot_index = raft.snapshot[2] if raft.snapshot else 0
    if index < snapshot_index or index > raft.log.position[2]:
        raise UtlError(
            f"the store goes up to raft index {index}, but the log from {snapshot_index} to {raft.log.position[2]}: "
            "start the member and stop it once"
        )
    rest = datadir.entries_after(raft.log, index)
    _check_entries(rest, members.cluster_version)
    conf_state = members.conf_state()
    snapfile.write(building.snap, members.to_v2(), conf_state, index, term)
    metadata = put_uint(1, raft.member_id) + put_uint(2, raft.cluster_id)
    hard_state = (max(state[0], term), state[1], max(state[2], index))
    wal.write_once(building.wal, metadata, rest, hard_state, (index, term, encode_conf_state(conf_state)))
    return f"revision {result['revision']}, raft index {index}, term {hard_state[0]}, {len(rest)} entries behind it"


def _settle_version(reader, target, force):
    """(Membership, {bucket: {key: value}} to write in place of what is there) for a member of that release."""
    cluster, meta = (dict(reader.items(name)) for name in (b"cluster", b"meta"))
    version = cluster.get(b"clusterVersion", b"").decode() or None
    found = membership.Membership(
        [membership.member_from_json(value) for _, value in reader.items(b"members")],
        [int(key, 16) for key, _ in reader.items(b"members_removed")],
        version,
    )
    if version and _numbers(version) > _numbers(target):
        if len(found.members) > 1 and not force:
            raise UtlError(
                f"the cluster of {len(found.members)} members is at version {version}, above {target}: others would "
                "not accept this one. Migrate all of them alike with --force, or make a new cluster out "
                "of a snapshot (snapshot save, snapshot restore)"
            )
        found.set_cluster_version(f"{target}.0")
        cluster[b"clusterVersion"] = found.cluster_version.encode()
        cluster.pop(b"downgrade", None)
    meta.pop(b"storageVersion", None)
    if _numbers(target) >= (3, 6) and version:
        meta[b"storageVersion"] = ".".join(found.cluster_version.split(".")[:2]).encode() + b".0"
    return found, {b"cluster": cluster, b"meta": meta}


def _copy(reader, path, replaced):
    with bbolt.Writer(path) as writer, output.Progress("writing", reader.size) as progress:
        for name in reader.buckets():
            if name in replaced:
                writer.bucket(name, sorted(replaced[name].items()))
                continue
            writer.begin_bucket(name)
            for batch in reader.batches(name):
                writer.put_many(batch)
                progress.add(sum(len(value) + 17 for _, value in batch))
            writer.end_bucket()
        writer.finish()


def _check_entries(rest, version):
    """Errors: UtlError when what the log holds behind the store would take the cluster above `version` again."""
    for _, _, index, data in rest:
        request = own_entries.read(data)
        if request and request[0] == "version" and version and _numbers(request[1]) > _numbers(version):
            raise UtlError(f"entry {index} of the log is not applied yet: start the member and stop it once")


def _numbers(version):
    """(major, minor)."""
    return tuple(int(part) for part in version.split(".")[:2])


def _number(raw):
    return int.from_bytes(raw, "big") if raw else 0


# ---- the store's own programs ---------------------------------------------------------------------


def _run_helper(name, asked):
    """Run etcdfast.apply.<name>, which knows the store; returns its result. Errors: UtlError.

    A process of its own, as the member runs it: this tool then never loads RocksDB.
    """
    command = [sys.executable, "-P", "-s", "-m", f"etcdfast.apply.{name}", json.dumps({**asked, "parent": os.getpid()})]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        raise UtlError(f"the program that reads the store ended with status {done.returncode}") from None
    if "error" in result:
        raise UtlError(result["error"])
    return result
