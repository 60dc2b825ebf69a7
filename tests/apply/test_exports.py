"""Snapshot files: what is in them, for whom they are made, and that nothing is left of one that nobody wants."""

import errno
import hashlib
import json
import os
import signal
from collections import namedtuple

import psutil
import pytest

from etcdfast.api import errors
from etcdfast.api.pb import rpc_pb2
from etcdfast.apply import exports as making
from tests.apply.rig import KINDS, NOBODY, RPC, Rig
from tests.harness import boltread, etcdutl
from tests.harness.wait import wait_until

Saved = namedtuple("Saved", "data messages")


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "store")
    yield made
    if made.fds:
        made.close()


def fill(rig, count=300):
    """Every kind of record: values, tombstones, a compaction, a lease."""
    for number in range(count):
        rig.put(b"key%04d" % (number % (count // 2)), b"value %d " % number * 20)
    rig.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"key0003", range_end=b"key0010"))
    rig.call("Compact", rpc_pb2.CompactionRequest(revision=count // 3, physical=True))
    rig.put(b"key0004", b"again")


def ask(rig):
    return rig.ask("Snapshot", rpc_pb2.SnapshotRequest())


def say(rig, kind, stream, index=0):
    """CREDIT or CANCEL of a snapshot's stream."""
    assert rig.f0a.push(
        KINDS[kind], method=RPC["Snapshot"], frontend=0, slot=7, generation=3, stream=stream, index=index
    )


def turn_until(rig, done, what):
    """Turns until the condition holds; the records that came meanwhile, by stream, with credit given."""
    found = {}

    def step():
        rig.turn()
        for record in rig.take():
            found.setdefault(record["stream"], []).append(record)
            if record["kind"] == KINDS["MESSAGE"]:
                say(rig, "CREDIT", record["stream"], len(record["payload"]))
        return done(found)

    wait_until(step, what, 30, 0.0001)
    return found


def ended(*streams):
    last = (KINDS["END"], KINDS["REPLY"])
    return lambda found: all(stream in found and found[stream][-1]["kind"] in last for stream in streams)


def saved(records):
    """The file out of one call's records, with the order and the counting down checked."""
    *chunks, digest = [rpc_pb2.SnapshotResponse.FromString(r["payload"]) for r in records[:-1]]
    assert records[-1]["kind"] == KINDS["END"] and records[-1]["status"] == 0
    data = b"".join(chunk.blob for chunk in chunks)
    left = len(data)
    for chunk in chunks:
        left -= len(chunk.blob)
        assert 0 < len(chunk.blob) <= 32768 and chunk.remaining_bytes == left
    assert digest.remaining_bytes == 0 and digest.blob == hashlib.sha256(data).digest()
    return Saved(data, [*chunks, digest])


def save(rig):
    stream = ask(rig)
    return saved(turn_until(rig, ended(stream), "end of the snapshot")[stream])


def buckets_of(data, tmp_path, name="saved.db"):
    path = tmp_path / name
    path.write_bytes(data)
    etcdutl.status(path)
    return boltread.buckets(path)


def left_behind(rig):
    return [name for name in os.listdir(rig.path + ".snap") if name.startswith(making.PREFIX)]


def revisions_in(rig):
    """What the store holds of bucket `key`, read by itself."""
    stream, _ = rig.process.store.records()
    return {key[1:]: value for key, value in stream if key[9] == 0x5F}


def test_the_file_holds_the_store_record_by_record(rig, tmp_path):
    fill(rig)
    found = buckets_of(save(rig).data, tmp_path)
    assert found[b"key"] == revisions_in(rig)
    meta = found[b"meta"]
    assert int.from_bytes(meta[b"consistent_index"], "big") == rig.index
    assert int.from_bytes(meta[b"term"], "big") == 2
    assert meta[b"scheduledCompactRev"] == meta[b"finishedCompactRev"] == (100).to_bytes(8, "big") + b"_" + bytes(8)
    assert left_behind(rig) == []


def test_an_empty_store_has_a_file_too(rig, tmp_path):
    found = buckets_of(save(rig).data, tmp_path)
    assert found[b"key"] == {} and found[b"meta"][b"consistent_index"] == bytes(8)


def test_what_is_written_meanwhile_is_not_in_it(rig, tmp_path):
    fill(rig)
    before = revisions_in(rig)
    stream = ask(rig)
    rig.turn()
    rig.turn()  # the state is fixed; the file is still being made
    for number in range(200):
        rig.put(b"later%d" % number, b"x" * 1000)
    found = turn_until(rig, ended(stream), "end of the snapshot")
    assert buckets_of(saved(found[stream]).data, tmp_path)[b"key"] == before


def test_clients_that_ask_together_get_the_same_file(rig):
    fill(rig)
    first = ask(rig)
    rig.turn()
    rig.turn()
    rig.put(b"between", b"")
    others = [ask(rig) for _ in range(5)]
    found = turn_until(rig, ended(first, *others), "end of all snapshots")
    files = [saved(found[stream]).data for stream in (first, *others)]
    assert files[0] != files[1] and len(set(files[1:])) == 1
    assert left_behind(rig) == [] and not open_exports()


def test_no_more_is_under_way_than_the_frontend_may_hold(rig):
    for number in range(100):
        rig.put(b"key%d" % number, os.urandom(20_000))
    stream = ask(rig)
    sent = []

    def take():
        rig.turn()
        sent.extend(r for r in rig.take() if r["stream"] == stream)
        return sent

    wait_until(take, "the first messages", 30)
    for _ in range(20):  # without credit more turns bring no more
        take()
    under_way = sum(len(r["payload"]) for r in sent)
    assert 128 << 10 < under_way <= 256 << 10
    for record in sent:
        say(rig, "CREDIT", stream, len(record["payload"]))
    found = turn_until(rig, ended(stream), "end of the snapshot")
    saved(sent + found[stream])


@pytest.mark.parametrize("fault", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_a_file_that_is_not_in_memory_is_waited_for(rig, monkeypatch, fault):
    """Told by the system, where the file system can tell; else it is read as it comes."""
    for number in range(20):
        rig.put(b"key%d" % number, os.urandom(20_000))
    real = os.preadv
    refused = []

    def preadv(fd, buffers, at, flags=0):
        if flags == os.RWF_NOWAIT and (fault == errno.EOPNOTSUPP or len(refused) < 3):
            refused.append(at)
            raise OSError(fault, os.strerror(fault))
        return real(fd, buffers, at, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    assert save(rig).data and len(refused) >= 3


@pytest.mark.parametrize("when", ["at once", "while it is made", "while it is sent"])
def test_a_client_that_goes_leaves_nothing(rig, when):
    for number in range(100):
        rig.put(b"key%d" % number, os.urandom(20_000))
    stream = ask(rig)
    if when == "while it is made":
        rig.turn()
        rig.turn()
    elif when == "while it is sent":
        wait_until(lambda: rig.turn() or rig.take(), "first message", 30)
    say(rig, "CANCEL", stream)
    turn_until(rig, lambda _: idle(rig) and not left_behind(rig) and not open_exports(), "end of everything")
    assert save(rig).data


def idle(rig):
    exports = rig.process.exports
    return exports._running is None and exports._next is None and not helpers()


def helpers():
    return psutil.Process().children(recursive=True)


def open_exports():
    """Files of exports that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if making.PREFIX in target:
            found.append(target)
    return found


# ---- for consensus --------------------------------------------------------------------------------


def answers_to_consensus(rig, count):
    found = []

    def step():
        rig.turn()
        while (record := rig.ac.pop()) is not None:
            if record["kind"] == KINDS["SNAPSHOT_DONE"]:
                found.append((record["index"], json.loads(record["payload"])))
        return len(found) == count

    wait_until(step, "answers to consensus", 30)
    return found


def wish(rig, token, conf_state=None):
    payload = json.dumps({"term": 2, "conf_state": conf_state or {"voters": [1, 2], "learners": [3]}}).encode()
    assert rig.ca.push(KINDS["SNAPSHOT"], payload, frontend=NOBODY, index=token)


def test_consensus_gets_the_state_of_its_place_in_the_log(rig, tmp_path):
    fill(rig)
    place = rig.index
    put = rpc_pb2.PutRequest(key=b"before", value=b"1")
    rig.propose("Put", put)
    wish(rig, 7)
    for _ in range(3):  # all in the ring before the loop looks at it
        rig.propose("Put", rpc_pb2.PutRequest(key=b"behind", value=b"2"))
    [(token, answer)] = answers_to_consensus(rig, 1)
    assert token == 7 and (answer["index"], answer["term"]) == (place + 1, 2)
    assert answer["bytes"] == os.path.getsize(answer["path"])
    found = boltread.buckets(answer["path"])
    assert int.from_bytes(found[b"meta"][b"consistent_index"], "big") == place + 1
    assert json.loads(found[b"meta"][b"confState"]) == {"voters": [1, 2], "learners": [3], "auto_leave": False}
    written = b"".join(found[b"key"].values())
    assert b"before" in written and b"behind" not in written
    # It is the asker's now, until the next start.
    assert left_behind(rig) == [os.path.basename(answer["path"])]


def test_one_wish_of_consensus_at_a_time(rig):
    fill(rig)
    wish(rig, 1)
    wish(rig, 2)
    answers = dict(answers_to_consensus(rig, 2))
    assert "path" in answers[1] and "error" in answers[2]
    wish(rig, 3)
    assert "path" in dict(answers_to_consensus(rig, 1))[3]


# ---- what goes wrong ------------------------------------------------------------------------------


def refused(rig, stream):
    record = turn_until(rig, ended(stream), "an answer")[stream][-1]
    return errors.ERRORS[record["status"]].symbol, record["payload"].decode()


def test_the_last_of_the_disk_is_not_for_snapshots(rig):
    fill(rig)
    rig.process.exports._options = {"reserve_bytes": 1 << 60}
    symbol, text = refused(rig, ask(rig))
    assert symbol == "UNKNOWN" and "of disk space are left" in text
    assert left_behind(rig) == [] and not open_exports()
    rig.process.exports._options = {}
    save(rig)


def test_a_file_that_cannot_be_made_is_named(rig, monkeypatch):
    fill(rig)
    real = making.checkpoint.link_manifest

    def obstructed(store, folder):
        real(store, folder)
        os.mkdir(folder + ".db")  # in the way of the file

    monkeypatch.setattr(making.checkpoint, "link_manifest", obstructed)
    symbol, text = refused(rig, ask(rig))
    assert symbol == "UNKNOWN" and "cannot write" in text and making.PREFIX in text


def signal_helpers(monkeypatch, number):
    """Every helper gets this signal as soon as it runs."""
    popen = making.subprocess.Popen

    def started(*arguments, **more):
        helper = popen(*arguments, **more)
        helper.send_signal(number)
        return helper

    monkeypatch.setattr(making.subprocess, "Popen", started)


def test_a_helper_that_dies_is_told_of(rig, monkeypatch):
    fill(rig)
    signal_helpers(monkeypatch, signal.SIGKILL)
    symbol, text = refused(rig, ask(rig))
    assert symbol == "UNKNOWN" and "ended with status -9" in text
    assert left_behind(rig) == [] and not open_exports()


def test_a_damaged_store_makes_no_file(rig, tmp_path):
    fill(rig)
    rig.process.store.db.flush(True)
    tables = [os.path.join(rig.path, name) for name in os.listdir(rig.path) if name.endswith(".sst")]
    for path in tables:
        with open(path, "r+b") as file:
            data = file.read()
            at = data.index(b"value 1")
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
    symbol, text = refused(rig, ask(rig))
    assert symbol == "UNKNOWN" and text.startswith("cannot make a snapshot file")
    assert left_behind(rig) == []


def test_what_a_former_life_left_goes_at_start(rig):
    snap_dir = rig.path + ".snap"
    rig.put(b"a", b"b")
    os.mkdir(f"{snap_dir}/{making.PREFIX}-1-2")
    kept = "0000000000000001-0000000000000001.snap"
    for name in (f"{making.PREFIX}-1-2/000001.sst", f"{making.PREFIX}-3-4.db", kept):
        with open(f"{snap_dir}/{name}", "wb"):
            pass
    rig.close()
    again = Rig(rig.path)
    assert os.listdir(snap_dir) == [kept]
    again.close()


def test_a_stop_waits_for_no_snapshot(rig, monkeypatch):
    fill(rig)
    signal_helpers(monkeypatch, signal.SIGSTOP)
    ask(rig)
    turn_until(rig, lambda _: helpers(), "a helper process")
    rig.close()
    wait_until(lambda: not helpers(), "end of the helper process")
