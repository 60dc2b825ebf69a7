"""Stops of every kind: what RocksDB holds is a whole prefix of the log, and replay brings back the rest."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etcdfast._ext.applyloop import EntryCorrupt, LoopError, SupervisorGone
from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.apply.cold import UnknownEntry
from etcdfast.apply.store import Store, StoreError
from tests.apply.calls import Calls
from tests.apply.model import Model
from tests.apply.rig import FIELD, KINDS, Rig
from tests.apply.test_semantics import read_only, run_model

ROOT = Path(__file__).parents[2]


def random_log(seed, entries):
    """A log of entries (raft data) with its model."""
    rng = random.Random(seed)
    model = Model()
    calls = Calls(rng, model)
    log = []
    while len(log) < entries:
        method, request = calls.next()
        if method not in FIELD or (method == "Txn" and read_only(request)):
            continue
        run_model(model, method, request)
        log.append(raft_internal_pb2.InternalRaftRequest(header={"ID": len(log) + 1}, **{FIELD[method]: request}))
    return [entry.SerializeToString() for entry in log], model


def hash_kv(rig, revision=0):
    return rig.call("HashKV", rpc_pb2.HashKVRequest(revision=revision)).message


def check_state(rig, model):
    state = model.states[model.current]
    answer = rig.range(b"\0", b"\0").message
    assert answer.header.revision == model.current
    assert [kv.SerializeToString() for kv in answer.kvs] == [state[key].SerializeToString() for key in sorted(state)]
    assert rig.process.mvcc.compacted == model.compacted


def replay(rig, log):
    """Hand over what consensus would: everything behind the applied index, and a bit of what is before."""
    for index in range(max(rig.loop.applied_index - 3, 1), len(log) + 1):
        rig.entry(log[index - 1], asked=False, index=index)
        if index % 50 == 0:
            rig.settle()
    rig.settle()
    rig.index = len(log)


CHILD = """
import os, sys
from tests.apply.rig import Rig
from tests.apply.test_restart import random_log
path, seed, entries, flush_every, stop_at = sys.argv[1], *map(int, sys.argv[2:])
log, _ = random_log(seed, entries)
rig = Rig(path)
for index, data in enumerate(log, 1):
    rig.entry(data, asked=False, index=index)
    if index % 7 == 0:
        rig.turn()
    if index % flush_every == 0:
        rig.turn()
        rig.process.store.db.flush(False)
    if index == stop_at:
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("seed", range(8))
def test_kill_9_then_replay(tmp_path, seed):
    """Whatever was in RocksDB's files at kill -9, replay of the log ends in the one right state."""
    rng = random.Random(seed)
    entries = 400
    stop_at = rng.randint(1, entries)
    path = tmp_path / "store"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, path, str(seed), str(entries), str(rng.choice((5, 30, 1000))), str(stop_at)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL
    log, model = random_log(seed, entries)
    rig = Rig(path)
    assert rig.loop.applied_index <= stop_at
    replay(rig, log)
    check_state(rig, model)
    hashed = hash_kv(rig)
    rig.close()
    whole = Rig(tmp_path / "whole")
    replay(whole, log)
    assert hash_kv(whole).SerializeToString() == hashed.SerializeToString()
    whole.close()


def test_a_store_opened_again_says_where_it_is(tmp_path):
    rig = Rig(tmp_path / "store")
    for i in range(10):
        rig.put(b"k", b"%d" % i)
    rig.entry(b"", asked=False)  # a leader's empty entry changes nothing but the applied index
    rig.settle()
    rig.close()
    rig = Rig(tmp_path / "store")
    assert rig.loop.applied_index == 11 == rig.word("applied_index") == rig.word("flushed_index")
    assert rig.word("opened") == 1 and rig.word("applied_term") == 2
    assert rig.range(b"k").message.header.revision == 11
    rig.close()


def test_entries_applied_already_are_skipped(tmp_path):
    rig = Rig(tmp_path / "store")
    first = raft_internal_pb2.InternalRaftRequest(header={"ID": 1}, put={"key": b"k", "value": b"v"})
    rig.entry(first.SerializeToString(), index=1)
    rig.entry(first.SerializeToString(), index=1)
    answers = rig.settle()
    assert len(answers) == 1
    assert rig.range(b"k").message.kvs[0].version == 1
    rig.close()


def test_compaction_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "store"
    rig = Rig(path)
    for i in range(900):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%d" % (i % 30), value=b"v%d" % i), asked=False)
    rig.propose("Compact", rpc_pb2.CompactionRequest(revision=850), asked=False)
    rig.turn()  # takes the compaction in and does its first step
    assert rig.process.mvcc.compacted == 850
    left = rig.process.mvcc.index_stats[2]
    assert left > 80
    rig.loop.store_applied()
    rig.process.store.db.flush(True)
    shutil.copytree(path, tmp_path / "copy")  # as kill -9 leaves it
    rig.close()
    rig = Rig(tmp_path / "copy")
    assert rig.process.mvcc.compacted == 850
    assert rig.range(b"k1", revision=849).status == "COMPACTED"
    before = hash_kv(rig).SerializeToString()
    rig.settle()
    assert rig.process.mvcc.index_stats[2] == 30 + 51
    assert hash_kv(rig).SerializeToString() == before
    revisions = [key for key, _ in rig.process.store.records()[0] if key[9:10] == b"_"]
    assert len(revisions) == 81
    rig.close()


def test_physical_compaction_empties_the_store(tmp_path):
    rig = Rig(tmp_path / "store")
    for i in range(2000):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%d" % (i % 10), value=b"v" * 100), asked=False)
        if i % 100 == 0:
            rig.settle()
    rig.settle()
    rig.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l"))
    rig.put(b"last", b"")
    in_use = rig.process.mvcc.in_use_bytes
    answer = rig.call("Compact", rpc_pb2.CompactionRequest(revision=2003, physical=True))
    assert answer.message.header.revision == 2003
    stored = [key for key, _ in rig.process.store.records()[0]]
    assert len([key for key in stored if key[9:10] == b"_"]) == 1
    # Applied records of the past go as well, and every other key is stored once.
    assert len(stored) <= 5
    kv = rig.range(b"last").message.kvs[0]
    other = sum(len(key) - 1 + len(value) for key, value in rig.process.store.meta.items())
    assert other > 0
    assert rig.process.mvcc.in_use_bytes == 17 + len(kv.SerializeToString()) + other < in_use
    rig.close()
    rig = Rig(tmp_path / "store")
    assert rig.process.mvcc.in_use_bytes == 17 + len(kv.SerializeToString()) + other
    rig.close()


def test_other_buckets_come_back(tmp_path):
    rig = Rig(tmp_path / "store")
    alarm = {"action": "ACTIVATE", "memberID": 9, "alarm": "NOSPACE"}
    rig.call("Alarm", rpc_pb2.AlarmRequest(**alarm))
    rig.call("Alarm", rpc_pb2.AlarmRequest(**{**alarm, "memberID": 8}))
    rig.call("Alarm", rpc_pb2.AlarmRequest(**{**alarm, "memberID": 8, "action": "DEACTIVATE"}))
    assert rig.word("alarms") == 1
    rig.close()
    rig = Rig(tmp_path / "store")
    assert rig.word("alarms") == 1
    assert rig.put(b"k", b"v").status == "NO_SPACE"
    assert rig.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k")).status == ""
    rig.call("Alarm", rpc_pb2.AlarmRequest(**{**alarm, "action": "DEACTIVATE"}))
    assert rig.put(b"k", b"v").status == ""
    rig.close()


def txn(*success, failure=()):
    return rpc_pb2.TxnRequest(success=success, failure=failure)


def test_what_nospace_and_corrupt_refuse(tmp_path):
    rig = Rig(tmp_path / "store")
    put = {"request_put": {"key": b"k", "value": b"v"}}
    delete = {"request_delete_range": {"key": b"k"}}
    rig.call("Alarm", rpc_pb2.AlarmRequest(action="ACTIVATE", memberID=9, alarm="NOSPACE"))
    assert rig.call("Txn", txn(delete, failure=[put])).status == "NO_SPACE"
    assert rig.call("Txn", txn(delete)).status == ""
    # etcd's quota does not look into nested transactions.
    assert rig.call("Txn", txn({"request_txn": txn(put)})).status == ""
    assert rig.range(b"k").message.count == 1
    rig.call("Alarm", rpc_pb2.AlarmRequest(action="ACTIVATE", memberID=9, alarm="CORRUPT"))
    assert rig.put(b"k", b"v").status == "CORRUPT"
    assert rig.range(b"k").status == ""
    assert rig.call("Txn", txn(delete)).status == "CORRUPT"
    assert rig.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k")).status == "CORRUPT"
    assert rig.call("Compact", rpc_pb2.CompactionRequest(revision=1)).status == "CORRUPT"
    rig.close()


def test_ready_once_the_first_entry_of_the_term_is_applied(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.entry(b"", asked=False)
    rig.turn()
    assert rig.word("ready") == 0
    rig.ca.push(KINDS["HARD"], index=1, term=2)
    rig.turn()
    assert rig.word("ready") == 1
    assert os.eventfd_read(rig.bells["frontend0"]) >= 1
    rig.close()


def test_a_signal_wakes_the_loop_and_what_is_handed_over_is_still_applied(tmp_path):
    rig = Rig(tmp_path / "store")

    def stop(number, frame):
        rig.loop.stopping = True

    before = signal.signal(signal.SIGALRM, stop)
    try:
        rig.loop.stopping = False
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        rig.loop.run()  # sleeps: nothing else ends its first wait but the signal
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k", value=b"v"))
        rig.loop.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rig.loop.applied_index == 1 and len(rig.take()) == 1
    rig.close()


def test_a_stop_does_not_wait_for_frontends_that_have_ended(tmp_path):
    """What is committed is applied and stored, also when nobody takes the answers from the full ring any more."""
    rig = Rig(tmp_path / "store")
    value = bytes(60_000)
    entries = 2 * (rig.af0.capacity // len(value))
    before = signal.signal(signal.SIGALRM, lambda number, frame: setattr(rig.loop, "stopping", True))
    try:
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k", value=value))
        while rig.index < entries:
            while rig.index < entries and rig.ca.room > 2 * len(value):
                rig.propose("Put", rpc_pb2.PutRequest(key=b"k", value=value, prev_kv=True))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            rig.loop.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rig.loop.applied_index == rig.loop.stored_index == entries
    rig.close()
    assert Rig(tmp_path / "store").loop.applied_index == entries


def test_the_end_of_the_supervisor_ends_the_loop(tmp_path):
    rig = Rig(tmp_path / "store")
    os.close(rig.life)
    rig.fds.remove(rig.life)
    with pytest.raises(SupervisorGone):
        rig.loop.run()
    rig.close(flush=False)


# ---- what must stop the member ----


def test_an_entry_that_cannot_be_decoded_stops(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.entry(b"\x22\x05\x0a\xff")
    with pytest.raises((UnknownEntry, EntryCorrupt), match="entry 1"):
        rig.turn()
    rig.close(flush=False)


@pytest.mark.parametrize(
    "data", [b"\x22\x02\x0a\x09", b"\x32\x03\x12\x01\x0a", b"\x2a\x02\x0a\x09", b"\x3a\x02\x08\x80"]
)
def test_a_request_that_cannot_be_decoded_stops(tmp_path, data):
    rig = Rig(tmp_path / "store")
    rig.entry(data)
    with pytest.raises((UnknownEntry, EntryCorrupt), match="entry 1"):
        rig.turn()
    rig.close(flush=False)


def test_a_gap_in_the_log_stops(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.entry(b"", index=2)
    with pytest.raises(LoopError, match="entry 2 handed over after entry 0"):
        rig.turn()
    rig.close(flush=False)


def test_an_unknown_request_stops(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.entry(raft_internal_pb2.InternalRaftRequest(header={"ID": 1}, range={"key": b"k"}).SerializeToString())
    with pytest.raises(UnknownEntry, match="range"):
        rig.turn()
    rig.close(flush=False)


def test_a_failed_write_stops_and_answers_nobody(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.put(b"k", b"v")
    rig.process.store.db.close()
    rig.propose("Put", rpc_pb2.PutRequest(key=b"k", value=b"w"))
    with pytest.raises(StoreError, match="cannot write to the store"):
        rig.turn()
    assert rig.take() == []


def test_a_store_without_its_last_record_is_refused(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.put(b"k", b"v")
    batch = rig.process.store.new_batch()
    batch.put(b"k" + (99).to_bytes(8, "big") + b"_" + bytes(8), b"")
    rig.process.store.write(batch)
    rig.process.store.close()
    with pytest.raises(StoreCorrupt, match="does not end with an applied record"):
        Rig(tmp_path / "store")


def test_a_record_that_vanished_is_found_out(tmp_path):
    rig = Rig(tmp_path / "store")
    rig.put(b"k", b"v")
    batch = rig.process.store.new_batch()
    batch.delete(b"k" + (2).to_bytes(8, "big") + b"_" + bytes(8))
    rig.process.store.write(batch)
    rig.read("Range", rpc_pb2.RangeRequest(key=b"k"))
    with pytest.raises(StoreCorrupt, match="revision 2_0"):
        rig.turn()
    rig.close(flush=False)


def test_a_flipped_byte_in_a_file_is_found_out(tmp_path):
    rig = Rig(tmp_path / "store")
    for i in range(200):
        rig.put(b"k%d" % i, b"v" * 100)
    rig.close()
    table = next((tmp_path / "store").glob("*.sst"))
    data = bytearray(table.read_bytes())
    data[5000] ^= 1
    table.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="is damaged behind key"):
        Rig(tmp_path / "store")


def test_a_folder_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store(str(tmp_path / "store"))
    assert "\n" not in str(caught.value)
