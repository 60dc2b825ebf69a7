"""A member's data at start: first members, restart, the last entries, --force-new-cluster, received snapshots."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from etcdfast.cluster import entries
from etcdfast.cluster import membership as rules
from etcdfast.consensus import bootstrap
from etcdfast.consensus.raft import HardState
from etcdfast.consensus.raft.messages import SnapshotMeta
from etcdfast.consensus.storage import ENTRY_CONF_CHANGE, StorageError, install_snapshot, open_member, settle
from etcdfast.formats import raftpb, snapfile, wal
from tests.consensus.member import make_config
from tests.harness.ports import free_port
from tests.harness.servers import EtcdServer
from tests.harness.wait import wait_until

SMALL = {"segment_bytes": 65536, "prewrite": False}


class Three:
    """Settings of three first members that nobody else knows; the ports stay closed."""

    def __init__(self, tmp_path):
        self.ports = {name: free_port() for name in ("a", "b", "c")}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in self.ports.items()}
        self.cluster = ",".join(f"{name}={url}" for name, url in self.urls.items())
        self.configs = {
            name: make_config(
                tmp_path / name,
                name=name,
                initial_cluster=self.cluster,
                initial_advertise_peer_urls=(url,),
                initial_cluster_token="t-3",
            )
            for name, url in self.urls.items()
        }
        self.members = bootstrap.first_members(self.configs["a"])
        self.ids = {member.name: member.id for member in self.members}

    def flags(self, name):
        """For real etcd."""
        return [
            "--initial-cluster", self.cluster,
            "--initial-advertise-peer-urls", self.urls[name],
            "--listen-peer-urls", self.urls[name],
            "--initial-cluster-token", "t-3",
        ]  # fmt: skip


@pytest.fixture
def three(tmp_path):
    return Three(tmp_path)


def opened_and_closed(config, **settings):
    opened = open_member(config, **SMALL, **settings)
    opened.disk.close()
    return opened


def rows(opened):
    return [opened.table.entry(row) for row in range(len(opened.table))]


def append(config, *entries, state=None):
    """Entries (type, term, index, data) behind what is there, then a hard state. Raw: as another run would."""
    _, disk = wal.open_for_append(config.wal_path, **SMALL)
    for entry in entries:
        disk.append_entry(*entry)
    disk.flush()
    if state:
        disk.append_state(*state)
    disk.close()


# ---- a new cluster --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_log_of_a_first_member_is_that_of_etcd(three, tmp_path, name):
    """Byte for byte: head with its ids, one configuration change per member, the hard state that commits them."""
    opened = opened_and_closed(three.configs[name])
    server = EtcdServer(directory=tmp_path / "etcd", name=name, flags=three.flags(name))
    directory = server.data_dir / "member" / "wal"
    server.spawn()
    try:
        wait_until(lambda: wal.exists(directory), "etcd's log")
        wait_until(lambda: wal.read(directory).state[2] == 3, "etcd's first entries")
    finally:
        server.close()
    theirs, ours = first_segment(directory), first_segment(three.configs[name].wal_path)
    end = len(ours.rstrip(b"\0")) + 7 & ~7
    assert ours[:end] == theirs[:end]
    assert opened.hard_state == HardState(1, 0, 3)
    assert opened.membership.members.keys() == set(three.ids.values())
    assert opened.conf_state.voters == tuple(sorted(three.ids.values()))
    assert (opened.applied_conf_index, opened.remotes, opened.snapshot) == (3, (), (0, 0))


def first_segment(directory):
    return Path(wal.list_segments(directory)[0].path).read_bytes()


OPEN = """
import json, sys
from etcdfast import log
from etcdfast.config import Config
from etcdfast.consensus.storage import open_member
open_member(Config.from_plain(json.load(sys.stdin)), segment_bytes=65536, prewrite=False, faults=sys.argv[1])
"""


def crash_at(config, fault, script=OPEN):
    """Exit status of a process that opens the member and dies at the fault; 0 when it came through."""
    done = subprocess.run(
        [sys.executable, "-c", script, fault], input=json.dumps(config.to_plain()), text=True, capture_output=True
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def test_a_crash_at_any_write_of_a_first_start_is_made_good(three):
    config = three.configs["b"]
    crashes = 0
    for operation in ("pwrite", "fdatasync"):
        for call in range(1, 10):
            shutil.rmtree(config.data_dir, ignore_errors=True)
            if crash_at(config, f"{operation}:{call}:kill") == 0:
                break
            crashes += 1
            opened = opened_and_closed(config)
            assert opened.hard_state == HardState(1, 0, 3)
            assert [row[:3] for row in rows(opened)] == [(1, 1, index) for index in (1, 2, 3)]
            assert opened.member_id == three.ids["b"]
    assert crashes >= 4


@pytest.mark.parametrize("there", [0, 1, 3])
def test_a_first_start_is_not_finished_with_other_settings(three, there):
    config = three.configs["a"]
    entries = bootstrap.first_entries(three.members)
    cluster_id = opened_and_closed(config).cluster_id
    shutil.rmtree(config.data_dir)
    os.makedirs(config.member_dir)
    disk = wal.create(config.wal_path, raftpb.put_uint(1, three.ids["a"]) + raftpb.put_uint(2, cluster_id), **SMALL)
    for index in range(there):
        disk.append_entry(ENTRY_CONF_CHANGE, 1, index + 1, entries[index])
    disk.close()
    other = config._replace(initial_cluster_token="another")
    with pytest.raises(StorageError, match="with other --initial-cluster settings"):
        open_member(other, **SMALL)
    assert opened_and_closed(config).hard_state == HardState(1, 0, 3)


# ---- a member that has been here ------------------------------------------------------------------


def test_entries_behind_the_commit_index_stay(three):
    config = three.configs["a"]
    opened_and_closed(config)
    publish = entries.attributes(7, three.ids["b"], "b", ("http://b:1",))
    change = raftpb.encode_conf_change(rules.add_change(9, 77, ("http://n:1",)))
    append(
        config, (0, 2, 4, b""), (0, 2, 5, publish), (0, 2, 6, b"x"), (ENTRY_CONF_CHANGE, 2, 7, change), state=(3, 77, 5)
    )
    opened = opened_and_closed(config)
    assert opened.hard_state == HardState(3, 77, 5)
    assert opened.last_index == 7 and opened.last_term == 2
    assert [row[2] for row in rows(opened)] == list(range(1, 8))
    assert opened.runs == [(1, 1), (4, 2)]
    assert opened.rare == [1, 2, 3, 5, 7]
    # What is not committed has no effect yet.
    assert opened.applied_conf_index == 3 and 77 not in opened.membership.members
    assert opened.membership.members[three.ids["b"]].client_urls == ("http://b:1",)
    # Another leader's entries take their place.
    append(config, (0, 4, 6, b"y"), state=(4, 0, 6))
    opened = opened_and_closed(config)
    assert [row[:3] for row in rows(opened)][-2:] == [(0, 2, 5), (0, 4, 6)]
    assert opened.hard_state == HardState(4, 0, 6)


def test_what_the_store_has_is_committed(three):
    """The log's commit index lags behind; membership follows what the store knows."""
    config = three.configs["a"]
    opened_and_closed(config)
    change = raftpb.encode_conf_change(rules.add_change(9, 77, ("http://n:1",), is_learner=True))
    publish = entries.attributes(7, 77, "n", ("http://n:2",), v2=True)
    append(config, (0, 2, 4, b""), (ENTRY_CONF_CHANGE, 2, 5, change), (0, 2, 6, publish), state=(2, 0, 3))
    opened = opened_and_closed(config)
    assert (opened.hard_state.commit, opened.applied_conf_index, opened.conf_state.learners) == (3, 3, ())
    opened = settle(config, opened, 6, 2)
    assert (opened.hard_state.commit, opened.applied_conf_index, opened.conf_state.learners) == (6, 5, (77,))
    assert opened.membership.members[77].name == "n"
    with pytest.raises(StorageError, match="is of term 2"):
        settle(config, opened, 6, 3)
    with pytest.raises(StorageError, match="applied index 7, .* ends at 6"):
        settle(config, opened, 7, 2)


def test_a_cluster_of_a_newer_version_is_not_served(three):
    config = three.configs["a"]
    opened_and_closed(config)
    append(config, (0, 2, 4, entries.cluster_version(1, "3.9.0")), state=(2, 0, 4))
    with pytest.raises(StorageError, match="server version is lower than determined cluster version"):
        settle(config, opened_and_closed(config), 0, 0)


def test_a_snapshot_that_contradicts_itself_is_refused(three):
    config = three.configs["a"]
    opened = open_member(config, **SMALL)
    data = opened.membership.to_v2()
    opened.disk.append_state(2, 0, 3)
    snapfile.write(os.path.join(config.member_dir, "snap"), data, raftpb.ConfState((1, 2)), 3, 1)
    opened.disk.append_snapshot(3, 1, raftpb.encode_conf_state(raftpb.ConfState((1, 2))))
    opened.disk.close()
    with pytest.raises(StorageError, match="its configuration is 1, 2") as caught:
        open_member(config, **SMALL)
    assert caught.value.corrupt


# ---- --force-new-cluster --------------------------------------------------------------------------


def grown(three, name="a"):
    """A log with history, an uncommitted tail behind index 8, and hard state."""
    config = three.configs[name]
    opened_and_closed(config)
    learner = raftpb.encode_conf_change(rules.add_change(9, 77, ("http://n:1",), is_learner=True))
    append(
        config,
        (0, 2, 4, b""),
        (0, 2, 5, entries.attributes(1, three.ids[name], name, ("http://127.0.0.1:1",), v2=True)),
        (0, 2, 6, entries.cluster_version(2, "3.5.0", v2=True)),
        (ENTRY_CONF_CHANGE, 2, 7, learner),
        (0, 2, 8, b""),
        (0, 2, 9, b""),
        (0, 2, 10, b""),
        state=(3, three.ids[name], 8),
    )
    return config


def test_force_new_cluster_does_to_the_log_what_etcd_does(three, tmp_path):
    """Real etcd 3.5.1 on a copy of the same log appends the same configuration changes."""
    config = grown(three)
    server = EtcdServer(directory=tmp_path / "etcd", name="a", flags=[*three.flags("a"), "--force-new-cluster"])
    shutil.copytree(config.member_dir, server.data_dir / "member")
    with server:
        server.stop()
    theirs = wal.read(server.data_dir / "member" / "wal").entries
    opened = open_member(config._replace(force_new_cluster=True), **SMALL)
    opened = settle(config._replace(force_new_cluster=True), opened, 0, 0)
    opened.disk.close()
    assert list(opened.membership.members) == [three.ids["a"]]
    assert opened.conf_state == raftpb.ConfState((three.ids["a"],))
    assert opened.hard_state == HardState(3, three.ids["a"], opened.last_index)
    assert opened.last_index == 8 + 3
    ours = rows(opened)
    assert [theirs.entry(row) for row in range(len(ours))] == ours
    # A second start with the flag changes nothing, one without it goes on.
    for force in (True, False):
        again = config._replace(force_new_cluster=force)
        opened = settle(again, open_member(again, **SMALL), 11, 3)
        opened.disk.close()
        assert rows(opened) == ours


def test_etcd_opens_what_was_forced(three, tmp_path):
    config = grown(three)._replace(force_new_cluster=True)
    settle(config, open_member(config, **SMALL), 0, 0).disk.close()
    server = EtcdServer(directory=tmp_path / "etcd", name="a", flags=three.flags("a"))
    shutil.copytree(config.member_dir, server.data_dir / "member")
    with server:  # started means that a linearizable read was answered
        server.stop()


def test_a_crash_while_forcing_is_forced_again(three):
    config = grown(three)._replace(force_new_cluster=True)
    script = OPEN.replace("open_member\n", "open_member, settle\n").replace("\nopen_member(", "\nopened = open_member(")
    script = script.replace(
        "opened = open_member(Config.from_plain(json.load(sys.stdin))",
        "c = Config.from_plain(json.load(sys.stdin))\nopened = open_member(c",
    )
    script += "settle(c, opened, 0, 0)\n"
    kept = config.data_dir + ".kept"
    shutil.copytree(config.data_dir, kept)
    crashes = 0
    for call in range(1, 8):
        shutil.rmtree(config.data_dir)
        shutil.copytree(kept, config.data_dir)
        if crash_at(config, f"pwrite:{call}:kill", script) == 0:
            break
        crashes += 1
        # Without the flag it is the old cluster's member again, or alone: never a mixture.
        plain = config._replace(force_new_cluster=False)
        opened = settle(plain, opened_and_closed(plain), 0, 0)
        assert len(opened.membership.members) in (1, 4)
        opened = settle(config, open_member(config, **SMALL), 0, 0)
        opened.disk.close()
        assert list(opened.membership.members) == [three.ids["a"]]
    assert crashes >= 2


def test_a_lone_voter_keeps_all_of_its_log(tmp_path):
    config = make_config(tmp_path / "data", force_new_cluster=True)
    opened_and_closed(config)
    append(config, (0, 2, 2, b""), (0, 2, 3, b""), state=(2, 0, 1))
    opened = settle(config, open_member(config, **SMALL), 0, 0)
    opened.disk.close()
    assert [row[2] for row in rows(opened)] == [1, 2, 3]


@pytest.mark.parametrize("case", ["learner", "absent"])
def test_force_makes_this_member_a_voter(three, case):
    config = three.configs["a"]._replace(force_new_cluster=True)
    opened_and_closed(config)
    own = three.ids["a"]
    if case == "learner":
        # A log in which it was added as a learner: its member id is in the log's head only.
        members = [member for member in three.members if member.id != own]
        rebuilt = bootstrap.first_entries(members)
        added = raftpb.encode_conf_change(rules.add_change(9, own, (three.urls["a"],), is_learner=True))
        append(config, *((1, 1, i, data) for i, data in enumerate((*rebuilt, added), 1)), state=(2, 0, 3))
    else:
        members = [member for member in three.members if member.id != own]
        log = [(1, 1, i, data) for i, data in enumerate(bootstrap.first_entries(members), 1)]
        append(config, *log, (0, 2, 3, b""), state=(2, 0, 3))
    opened = settle(config, open_member(config, **SMALL), 0, 0)
    opened.disk.close()
    assert opened.conf_state == raftpb.ConfState((own,))
    assert opened.membership.members[own].peer_urls == (three.urls["a"],)


def test_a_removed_member_cannot_force(three):
    config = three.configs["a"]._replace(force_new_cluster=True)
    opened_and_closed(config)
    gone = raftpb.encode_conf_change(rules.remove_change(9, three.ids["a"]))
    append(config, (ENTRY_CONF_CHANGE, 2, 4, gone), state=(2, 0, 4))
    with pytest.raises(StorageError, match="was removed from its cluster"):
        settle(config, open_member(config, **SMALL), 0, 0)


# ---- a snapshot from a leader ---------------------------------------------------------------------


def received(three, opened, index=500, term=7):
    """(meta, data) of a snapshot in which member c is gone and a learner is there."""
    members = rules.Membership(
        [
            *(member for member in three.members if member.name != "c"),
            rules.Member(0x77, "n", ("http://n:1",), ("http://n:2",), True),
        ],
        removed=[three.ids["c"]],
        cluster_version="3.5.0",
    )
    return SnapshotMeta(index, term, members.conf_state()), members.to_v2()


def test_a_received_snapshot_is_what_the_next_start_goes_on_from(three):
    config = grown(three)
    opened = open_member(config, **SMALL)
    meta, data = received(three, opened)
    install_snapshot(config, opened, meta, data, (7, 0, 500))
    opened.disk.close()
    opened = open_member(config, **SMALL)
    assert opened.snapshot == (500, 7)
    assert (len(opened.table), opened.last_index, opened.last_term) == (0, 500, 7)
    assert opened.hard_state == HardState(7, 0, 500)
    assert opened.conf_state == meta.conf_state and opened.conf_state.learners == (0x77,)
    assert opened.membership.removed == {three.ids["c"]}
    assert (opened.applied_conf_index, opened.runs) == (500, [(500, 7)])
    # The log goes on behind it, also over a second start.
    opened.disk.append_entry(0, 7, 501, b"next")
    opened.disk.append_state(8, 0, 501)
    opened.disk.close()
    opened = opened_and_closed(config)
    assert rows(opened) == [(0, 7, 501, b"next")]
    assert settle(config, opened, 500, 7).snapshot == (500, 7)
    with pytest.raises(StorageError, match="begins at 501: the entries between are lost"):
        settle(config, opened, 8, 2)


INSTALL = """
import json, os, sys
from etcdfast.config import Config
from etcdfast.consensus.storage import install_snapshot, open_member
from etcdfast.consensus.raft.messages import SnapshotMeta
from etcdfast.formats import snapfile
config = Config.from_plain(json.load(sys.stdin))
opened = open_member(config, segment_bytes=65536, prewrite=False, faults=sys.argv[1])
sent = os.path.join(config.member_dir, "received")
data, conf_state, index, term = snapfile.read(sent, snapfile.names(sent)[0])
install_snapshot(config, opened, SnapshotMeta(index, term, conf_state), data, (7, 0, 500))
"""


def test_a_crash_at_any_write_of_an_installation_leaves_the_old_or_the_new_state(three, monkeypatch):
    config = grown(three)
    meta, data = received(three, None)
    sent = os.path.join(config.member_dir, "received")
    os.makedirs(sent)
    snapfile.write(sent, data, meta.conf_state, meta.index, meta.term)
    kept = config.data_dir + ".kept"
    shutil.copytree(config.data_dir, kept)
    snap_dir = os.path.join(config.member_dir, "snap")
    seen = set()
    for fault in (*(f"pwrite:{n}:kill" for n in (1, 2)), *(f"fdatasync:{n}:kill" for n in (1, 2))):
        shutil.rmtree(config.data_dir)
        shutil.copytree(kept, config.data_dir)
        database = os.path.join(snap_dir, snapfile.database_name(500))
        os.makedirs(snap_dir, exist_ok=True)
        open(database, "w").close()
        crashed = crash_at(config, fault, INSTALL) == -9
        opened = opened_and_closed(config)
        if opened.snapshot == (500, 7):
            assert opened.hard_state == HardState(7, 0, 500)
            assert os.path.exists(database)
        else:
            assert crashed
            assert (opened.snapshot, opened.last_index, len(opened.table)) == ((0, 0), 10, 10)
        seen.add(opened.snapshot[0])
    assert seen == {0, 500}


def test_half_an_installation_is_taken_back(three):
    """The record reached the disk, the hard state that counts it did not: torn between the two."""
    config = grown(three)
    meta, data = received(three, None)
    snap_dir = os.path.join(config.member_dir, "snap")
    opened = open_member(config, **SMALL)
    snapfile.write(snap_dir, data, meta.conf_state, meta.index, meta.term)
    open(os.path.join(snap_dir, snapfile.database_name(500)), "w").close()
    opened.disk.append_snapshot(500, 7, raftpb.encode_conf_state(meta.conf_state))
    opened.disk.close()
    opened = opened_and_closed(config)
    assert (opened.snapshot, opened.last_index, opened.hard_state.commit) == ((0, 0), 10, 8)
    assert os.listdir(snap_dir) == []


def test_a_snapshot_that_does_not_fit_itself_is_not_installed(three):
    config = grown(three)
    opened = open_member(config, **SMALL)
    meta, data = received(three, None)
    for wrong in (meta._replace(conf_state=raftpb.ConfState((1,))), meta):
        with pytest.raises(StorageError):
            install_snapshot(config, opened, wrong, b"{}" if wrong is meta else data, (7, 0, 500))
    opened.disk.close()
    assert opened_and_closed(config).snapshot == (0, 0)


def test_members_beyond_the_configuration_are_taken(three):
    """etcd 3.6 lists who is a member when it sends, which may be later than the snapshot."""
    config = grown(three)
    opened = open_member(config, **SMALL)
    meta, data = received(three, None)
    meta = meta._replace(conf_state=raftpb.ConfState(meta.conf_state.voters))
    install_snapshot(config, opened, meta, data, (7, 0, 500))
    opened.disk.close()
    opened = opened_and_closed(config)
    assert opened.conf_state.learners == () and 0x77 in opened.membership.members


def test_databases_of_older_snapshots_go(tmp_path):
    for index in (5, 9, 10):
        open(tmp_path / snapfile.database_name(index), "w").close()
    for index in (8, 9, 10):
        snapfile.write(tmp_path, b"{}", raftpb.ConfState((1,)), index, 1)
    snapfile.purge(tmp_path, 2, 10)
    assert sorted(os.listdir(tmp_path)) == [
        snapfile.file_name(1, 9), snapfile.file_name(1, 10), snapfile.database_name(10),
    ]  # fmt: skip
    snapfile.purge(tmp_path, 0)
    assert len(os.listdir(tmp_path)) == 3
