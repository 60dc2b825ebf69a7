"""etcd's database becomes our store: what is taken over, which file is chosen, and a crash at every step."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from etcdfast._ext import wire
from etcdfast._ext.mvcc import Mvcc, StoreCorrupt
from etcdfast.apply import buckets, importing
from etcdfast.apply.compaction import revision_key
from etcdfast.apply.export import export
from etcdfast.apply.importing import ImportStopped, prepare
from etcdfast.apply.store import Store
from etcdfast.formats import bbolt
from tests.apply.rig import Rig
from tests.harness import boltread, pb

MEMBER = 0x8E9E05C52164694D


def revision(main, sub=0, mark=b""):
    return main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + mark


def key_value(key, main, version=1, create=None, **more):
    return pb.KeyValue(
        key=key, create_revision=create or main, mod_revision=main, version=version, **more
    ).SerializeToString()


def database(index=10, term=3, keys=200, alarm=False):
    """Buckets as etcd has them: two revisions of a key, a tombstone, a lease, auth; an alarm, which forbids puts."""
    found = {name: {} for name in buckets.NAMES}
    for number in range(keys):
        name = b"key%05d" % number
        found[b"key"][revision(2 + number)] = key_value(name, 2 + number, value=b"v" * 100)
    last = 2 + keys
    found[b"key"][revision(last)] = key_value(b"key00003", last, 2, 5, lease=0x77, value=b"leased")
    found[b"key"][revision(last, 1, b"t")] = pb.KeyValue(key=b"key00004").SerializeToString()
    found[b"lease"][(0x77).to_bytes(8, "big")] = b"\x08\x77\x10\x90\x4e"
    if alarm:
        found[b"alarm"][b"\x08\x05\x10\x01"] = b""
    found[b"auth"] = {b"authEnabled": b"\0", b"authRevision": (4).to_bytes(8, "big")}
    found[b"authUsers"][b"root"] = b"\x0a\x04root\x1a\x04root"
    found[b"authRoles"][b"root"] = b"\x0a\x04root"
    found[b"members"][b"%x" % MEMBER] = json.dumps({"id": MEMBER, "peerURLs": ["http://a:1"], "name": "m"}).encode()
    found[b"members_removed"][b"77"] = b"removed"
    found[b"cluster"][b"clusterVersion"] = b"3.5.0"
    found[b"meta"] = {
        b"consistent_index": index.to_bytes(8, "big"),
        b"term": term.to_bytes(8, "big"),
        b"confState": b'{"voters":[%d],"auto_leave":false}' % MEMBER,
        b"scheduledCompactRev": revision(1),
        b"finishedCompactRev": revision(1),
    }
    return found


def write(path, found):
    with bbolt.Writer(path) as writer:
        for name, items in found.items():
            writer.bucket(name, sorted(items.items()))
        writer.finish()


class Folder:
    """member/ of a data directory."""

    def __init__(self, path):
        self.path = str(path)
        self.store = f"{path}/store"
        self.snap = f"{path}/snap"
        os.makedirs(self.snap)

    def write(self, found, name="db"):
        write(f"{self.snap}/{name}", found)

    def prepare(self, snapshot_index=0):
        return prepare(self.store, self.snap, snapshot_index)

    def names(self):
        return sorted(os.listdir(self.path)), sorted(os.listdir(self.snap))

    def exported(self):
        """The store written as a database again: its buckets."""
        out = f"{self.path}/again.db"
        export(self.store, out, reserve_bytes=0)
        found = boltread.buckets(out)
        os.unlink(out)
        return found


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "member")


def test_everything_is_taken_over(folder):
    before = database(alarm=True)
    folder.write(before)
    assert folder.prepare()
    assert folder.exported() == before
    assert folder.names() == (["snap", "store"], ["db.imported"])


def test_the_apply_process_loads_it(folder):
    before = database()
    folder.write(before)
    folder.prepare()
    rig = Rig(folder.store)
    assert (rig.index, rig.loop.mvcc.current, rig.loop.mvcc.compacted) == (10, 202, 1)
    answer = rig.range(b"key", b"kez").message
    assert answer.count == 199 and answer.kvs[3].lease == 0x77 and answer.kvs[3].version == 2
    rig.put(b"more", b"")
    rig.close()
    found = folder.exported()
    assert len(found[b"key"]) == len(before[b"key"]) + 1 and found[b"authUsers"] == before[b"authUsers"]


def test_the_database_stays_for_one_more_life(folder):
    folder.write(database())
    folder.prepare()
    importing.forget(f"{folder.path}/nothing")
    assert not folder.prepare()
    assert folder.names()[1] == ["db.imported"]
    importing.forget(folder.snap)
    assert folder.names()[1] == []


def test_etcd_34_has_neither_term_nor_conf_state(folder):
    before = database()
    for name in (b"term", b"confState"):
        del before[b"meta"][name]
    folder.write(before)
    folder.prepare()
    store = Store(folder.store, read_only=True)
    assert store.applied() == (202, 10, 0)
    # A file made of it has what its members say.
    assert json.loads(folder.exported()[b"meta"][b"confState"]) == {"voters": [MEMBER], "auto_leave": False}


def test_the_members_say_who_votes(folder):
    """`snapshot restore` of etcd writes new members and leaves the old cluster's configuration in bucket meta."""
    before = database()
    before[b"meta"][b"confState"] = b'{"voters":[1,2,3],"auto_leave":false}'
    before[b"members"][b"9"] = b'{"id":9,"peerURLs":["http://a:9"],"isLearner":true}'
    folder.write(before)
    folder.prepare()
    found = json.loads(folder.exported()[b"meta"][b"confState"])
    assert found == {"voters": [MEMBER], "learners": [9], "auto_leave": False}


def test_many_leases(folder, monkeypatch):
    monkeypatch.setattr(importing, "BATCH_ITEMS", 100)
    before = database(keys=1)
    for number in random.Random(1).sample(range(1, 1 << 62), 3000):
        before[b"lease"][number.to_bytes(8, "big")] = b"\x08" + wire.varint(number) + b"\x10\xd8\x04"
    folder.write(before)
    folder.prepare()
    assert folder.exported() == before
    rig = Rig(folder.store)
    assert len(list(rig.loop.mvcc.leases.items())) == 3001
    rig.close()


def test_a_bucket_that_is_none_of_etcds_is_passed_over(folder, capfd):
    before = database()
    folder.write({**before, b"strange": {b"a": b"b"}})
    folder.prepare()
    assert folder.exported() == before
    assert '"bucket":"strange"' in capfd.readouterr().err


def test_a_database_never_used(folder):
    folder.write({name: {} for name in buckets.NAMES})
    folder.prepare()
    rig = Rig(folder.store)
    assert (rig.index, rig.loop.mvcc.current, rig.loop.mvcc.compacted) == (0, 1, -1)
    rig.close()


def test_revisions_raised_by_a_restore_count(folder):
    """`snapshot restore --bump-revision --mark-compacted`: an item without content, and everything compacted."""
    before = database(keys=5)
    before[b"key"][revision(1_000_000)] = b""
    before[b"meta"][b"scheduledCompactRev"] = revision(1_000_000)
    folder.write(before)
    folder.prepare()
    rig = Rig(folder.store)
    assert (rig.loop.mvcc.current, rig.loop.mvcc.compacted) == (1_000_000, 1_000_000)
    assert rig.put(b"next").message.header.revision == 1_000_001
    rig.close()


def test_a_compaction_that_etcd_had_not_finished_goes_on(folder):
    before = database()
    before[b"meta"][b"scheduledCompactRev"] = revision(202)
    folder.write(before)
    folder.prepare()
    rig = Rig(folder.store)
    rig.settle()
    assert rig.process.store.meta[buckets.FINISHED_COMPACT] == revision_key(202)
    rig.close()
    assert revision(5) not in folder.exported()[b"key"]


def test_many_tables(folder, monkeypatch):
    monkeypatch.setattr(importing, "FILE_BYTES", 10_000)
    monkeypatch.setattr(importing, "BATCH_ITEMS", 64)
    before = database(keys=3000)
    folder.write(before)
    folder.prepare()
    assert sum(name.endswith(".sst") for name in os.listdir(folder.store)) > 5
    assert folder.exported() == before


# ---- which file -----------------------------------------------------------------------------------

SENT = f"{300:016x}.snap.db"


def applied_of(folder):
    store = Store(folder.store, read_only=True)
    return store.applied()[1]


def test_a_state_that_was_sent_takes_the_place_of_an_older_store(folder):
    folder.write(database(index=10))
    folder.prepare()
    newer = database(index=300, keys=500)
    folder.write(newer, SENT)
    folder.write(database(index=200), f"{200:016x}.snap.db")
    assert folder.prepare(300)
    assert applied_of(folder) == 300 and folder.exported() == newer
    assert folder.names() == (["snap", "store"], ["db.imported"])


def test_a_state_that_the_store_has_already_is_deleted(folder):
    folder.write(database(index=300))
    folder.prepare()
    folder.write(database(index=300, keys=1), SENT)
    folder.write(database(index=301), f"{301:016x}.snap.db")  # of a snapshot that the log does not know yet
    assert not folder.prepare(300)
    assert folder.names()[1] == [f"{301:016x}.snap.db", "db.imported"]


@pytest.mark.parametrize(("backend", "taken"), [(299, 300), (300, 301), (None, 300)])
def test_of_etcds_two_databases_the_newer_one_counts(folder, backend, taken):
    """etcd may have died between receiving a state and taking it over, or right after that."""
    folder.write(database(index=300, keys=10), SENT)
    if backend:
        folder.write(database(index=299 if backend == 299 else 301, keys=20))
    folder.prepare(300)
    assert applied_of(folder) == taken
    assert folder.names()[1] == (["db.imported"] if backend else [])


def test_a_store_is_not_given_up_for_etcds_database(folder):
    folder.write(database(index=50))
    folder.prepare()
    folder.write(database(index=60))
    assert not folder.prepare()
    assert applied_of(folder) == 50


def test_a_store_that_has_lost_its_head_is_not_cleared(folder):
    folder.write(database())
    folder.prepare()
    os.unlink(f"{folder.store}/CURRENT")
    before = sorted(os.listdir(folder.store))
    folder.write(database())
    with pytest.raises(StoreCorrupt, match="CURRENT is missing"):
        folder.prepare()
    assert sorted(os.listdir(folder.store)) == before


# ---- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_named_and_leaves_nothing(folder, seed):
    before = database()
    folder.write(before)
    path = f"{folder.snap}/db"
    rng = random.Random(seed)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        for page in range(2, len(data) // 4096):  # the structure of each page, not the values in it
            at = page * 4096 + rng.choice((0, 8))  # id, kind
            data[at] ^= 1 << rng.randrange(8)
        file.seek(0)
        file.write(data)
    with pytest.raises(StoreCorrupt, match=path):
        folder.prepare()
    assert folder.names() == (["snap"], ["db"])


def test_a_key_that_is_no_revision_is_named(folder):
    before = database()
    before[b"key"][b"zzz"] = b""
    folder.write(before)
    with pytest.raises(StoreCorrupt, match="which is no revision"):
        folder.prepare()
    assert folder.names() == (["snap"], ["db"])


def test_a_stop_ends_it(folder):
    folder.write(database())
    with pytest.raises(ImportStopped):
        prepare(folder.store, folder.snap, 0, lambda: True)
    assert folder.names() == (["snap"], ["db"])
    assert folder.prepare()


_CHILD = """
import os, shutil, sys
from etcdfast.apply import importing

steps = int(sys.argv[4])

def counted(function, before):
    def call(*arguments, **more):
        global steps
        steps -= 1
        last = steps == 0
        if last and before:
            os._exit(99)
        result = function(*arguments, **more)
        if last:
            os._exit(99)
        return result
    return call

before = sys.argv[5] == "before"
os.rename = counted(os.rename, before)
os.unlink = counted(os.unlink, before)
os.fsync = counted(os.fsync, before)
shutil.rmtree = counted(shutil.rmtree, before)
importing.Rdict = counted(importing.Rdict, before)
importing._fill = counted(importing._fill, before)
importing._SortedFiles.put_many = counted(importing._SortedFiles.put_many, before)
importing._SortedFiles.finish = counted(importing._SortedFiles.finish, before)
importing.prepare(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("replaced", [False, True], ids=["first store", "store replaced"])
def test_a_crash_at_any_step_is_no_loss(tmp_path, replaced, when):
    """The process ends at the n-th step for every n; the next start comes to the same end."""
    start = Folder(tmp_path / "start")
    wanted = database(index=300, keys=60)
    if replaced:
        start.write(database(index=10))
        start.prepare()
        importing.forget(start.snap)
        start.write(wanted, SENT)
    else:
        start.write(wanted)
    step = 0
    while True:
        step += 1
        path = tmp_path / str(step)
        shutil.copytree(start.path, path)
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, f"{path}/store", f"{path}/snap", "300", str(step), when],
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 99), done.stderr
        folder = Folder.__new__(Folder)
        folder.path, folder.store, folder.snap = str(path), f"{path}/store", f"{path}/snap"
        folder.prepare(300)
        assert applied_of(folder) == 300, step
        assert folder.exported() == wanted, step
        assert folder.names() == (["snap", "store"], [] if replaced else ["db.imported"]), step
        if done.returncode == 0:
            break
    assert step > 6  # there were that many places to die at


def test_revisions_are_loaded_as_etcd_wrote_them(folder):
    """Values are not made again: what HashKV sees is what etcd stored."""
    before = database()
    odd = revision(500)
    # Fields in an order no encoder of ours makes; etcd would keep the bytes, and so do we.
    before[b"key"][odd] = b"\x20\x01\x18\xf4\x03\x10\xf4\x03\x0a\x03odd"
    folder.write(before)
    folder.prepare()
    store = Store(folder.store)
    mvcc = Mvcc(store.read, store.walk, store.new_batch, store.write)
    stream, last = store.records()
    mvcc.load(stream, last, store.meta, store.meta_revisions)
    assert mvcc.get(b"odd") == (500, 500, 1, before[b"key"][odd])
    store.close()


_LIMITED = """
import resource, sys
from etcdfast.apply import export, importing
from etcdfast.apply.store import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # what a full disk is to a write
try:
    if sys.argv[1] == "import":
        importing.prepare(sys.argv[2], sys.argv[3], 0)
    else:
        export.export(sys.argv[2], sys.argv[3], reserve_bytes=0)
except (StoreError, OSError) as err:
    print(f"refused: {err}")
"""


def limited(*arguments):
    done = subprocess.run([sys.executable, "-c", _LIMITED, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_too_small_for_an_import_is_named(folder):
    before = database(keys=3000)
    folder.write(before)
    said = limited("import", folder.store, folder.snap)
    assert said.startswith(f"refused: cannot import {folder.snap}/db into {folder.store}"), said
    assert folder.names() == (["snap"], ["db"])
    folder.prepare()
    assert folder.exported() == before


def test_a_disk_too_small_for_an_export_is_named(folder):
    folder.write(database(keys=3000))
    folder.prepare()
    assert "File too large" in limited("export", folder.store, f"{folder.path}/out.db")
