"""snapshot status, hashkv and the db commands, beside real etcdutl 3.5.1."""

import json
import os
import pty
import subprocess
import termios

import pytest

from etcdfast.formats import bbolt
from tests.harness import boltread, etcdutl
from tests.utl.tools import utl, utl_process


def both(*arguments):
    """The tool's run, which must equal etcdutl's: output and exit code."""
    ours, real = utl(*arguments), etcdutl.run(*arguments)
    assert (ours.code, ours.out) == (real.returncode, real.stdout)
    return ours, real


@pytest.mark.parametrize("form", ["simple", "table", "json", "fields", "protobuf"])
@pytest.mark.parametrize("which", ["snapshot", "database"])
def test_status_prints_what_etcdutl_prints(form, which, source):
    ours, real = both("snapshot", "status", "-w", form, getattr(source, which))
    assert ours.err == real.stderr


def test_status_of_a_small_file(tmp_path):
    path = tmp_path / "db"
    with bbolt.Writer(path) as writer:
        writer.bucket(b"key")
        writer.finish()
    for form in ("simple", "table", "json", "fields"):
        both("snapshot", "status", path, "--write-out", form)


@pytest.mark.parametrize(
    "arguments, code",
    [
        (("snapshot", "status"), 128),
        (("snapshot", "status", "a", "b"), 128),
        (("snapshot", "status", "/nonexistent/file"), 1),
        (("snapshot", "status", "-w", "yaml", "/nonexistent/file"), 4),
        (("snapshot", "status", "-w", "protobuf", "/nonexistent/file"), 1),
        (("snapshot", "status", "--colour", "a"), 1),
        (("snapshot", "status", "-x", "a"), 1),
        (("snapshot", "status", "a", "-w"), 1),
        (("snapshots",), 1),
        (("snapshot", "restore", "a"), 1),
        (("snapshot", "restore", "a", "--data-dir", "b", "--skip-hash-check=maybe"), 1),
    ],
)
def test_what_is_typed_wrong_is_answered_as_by_etcdutl(arguments, code, tmp_path):
    ours, real = utl(*arguments, cwd=tmp_path), etcdutl.run(*arguments)
    assert (ours.code, real.returncode) == (code, code)
    assert ours.out == ""
    # etcdutl says it before the usage and again behind it
    assert _errors(ours.err)[-1] == _errors(real.stderr)[-1].replace("etcdutl", "etcdfastutl")


def _errors(text):
    return [line for line in text.splitlines() if line.startswith("Error: ")]


def test_items_read_from_etcds_own_file(source):
    """The same items that an independent reader finds, in all buckets."""
    expected = boltread.buckets(source.database)
    with bbolt.Reader(source.database) as reader:
        reader.check()
        assert {name: dict(reader.items(name)) for name in reader.buckets()} == expected
    assert all(expected[name] for name in (b"key", b"meta", b"lease", b"authUsers", b"authRoles", b"members"))


def test_our_copy_of_etcds_file_has_the_same_hash(source, tmp_path):
    path = tmp_path / "copy"
    with bbolt.Reader(source.database) as reader, bbolt.Writer(path) as writer:
        for name in reader.buckets():
            writer.bucket(name, reader.items(name))
        writer.finish()
    assert boltread.buckets(path) == boltread.buckets(source.database)
    theirs, ours = etcdutl.status(source.database), etcdutl.status(path)
    assert ours | {"totalSize": 0} == theirs | {"totalSize": 0}
    assert ours["totalSize"] <= theirs["totalSize"]


def test_hashkv_is_what_the_member_answered(source):
    for revision, (hash, compacted) in source.hashes.items():
        done = utl("hashkv", source.snapshot, "--rev", revision, "-w", "json")
        assert json.loads(done.out) == {
            "hash": hash, "hashRevision": revision or source.revision, "compactRevision": compacted,
        }  # fmt: skip
    simple = utl("hashkv", source.snapshot).out.split(", ")
    assert simple[1:] == [str(source.revision), f"{compacted}\n"]


def test_hashkv_of_a_revision_that_is_not_there(source):
    future = utl("hashkv", source.snapshot, "--rev", source.revision + 1)
    assert (future.code, future.err) == (1, "Error: mvcc: required revision is a future revision\n")
    compacted = utl("hashkv", source.snapshot, "--rev", 1)
    assert (compacted.code, compacted.err) == (1, "Error: mvcc: required revision has been compacted\n")


def test_a_damaged_file_is_named(source, tmp_path):
    path = tmp_path / "db"
    content = bytearray(source.database.read_bytes())
    with bbolt.Reader(source.database) as reader:
        root = reader._file.root
    content[root * 4096] ^= 1
    path.write_bytes(content)
    for command in (("snapshot", "status"), ("hashkv",), ("db", "check"), ("db", "dump")):
        done = utl(*command, path)
        assert done.code == 1 and done.out == ""
        assert f"{path}: page {root}: it carries another page's id" in done.err


def test_a_database_in_use_is_refused(source, tmp_path):
    from tests.harness.servers import EtcdServer

    with EtcdServer(directory=tmp_path) as etcd:
        done = utl("snapshot", "status", etcd.data_dir / "member" / "snap" / "db")
    assert done.code == 1 and "stop it first" in done.err


def test_db_dump_shows_buckets_and_items(source):
    buckets = utl("db", "dump", source.database).out
    assert "| authUsers " in buckets and "BUCKET" in buckets
    keys = utl("db", "dump", source.database, "--bucket", "key", "--limit", 3).out.splitlines()
    assert len(keys) == 3 and 'key="key' in keys[0]
    assert "tombstone" in utl("db", "dump", source.database, "--bucket", "key").out
    assert "voters" in utl("db", "dump", source.database, "--bucket", "meta").out
    wrong = utl("db", "dump", source.database, "--bucket", "keys")
    assert wrong.code == 1 and "it has alarm, auth, authRoles" in wrong.err


def test_help_teaches(tmp_path):
    for words in ((), ("snapshot",), ("snapshot", "restore"), ("hashkv",), ("db",), ("snapshot", "save")):
        done = utl(*words, "--help")
        assert done.code == 0 and "Usage:" in done.out and done.err == ""
    assert utl("help", "snapshot", "restore").out == utl("snapshot", "restore", "-h").out
    assert "Examples:" in utl("snapshot", "restore", "-h").out
    assert utl("version").out.startswith("etcdfastutl version: ")
    assert utl("defrag", "--data-dir", tmp_path).code == 0
    assert not os.listdir(tmp_path)


def test_as_a_process(source):
    """Exit codes reach the shell; output that nobody reads is no traceback."""
    ended = utl_process("snapshot", "status", source.snapshot, stdout=subprocess.PIPE)
    assert ended.communicate()[0] == utl("snapshot", "status", source.snapshot).out and ended.returncode == 0
    with open("/dev/full", "w") as full:
        ended = utl_process("db", "dump", source.snapshot, "--bucket", "key", stdout=full, stderr=subprocess.PIPE)
        said = ended.communicate()[1]
    assert ended.returncode == 1 and said == "Error: no space left on device\n"
    unread = utl_process(
        "db", "dump", source.snapshot, "--bucket", "key", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    unread.stdout.close()
    assert unread.stderr.read() == "" and unread.wait() == 1
    unread.stderr.close()


def test_a_bar_is_shown_on_a_terminal(source, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    tool = utl_process("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # EIO: the other end is closed
            break
    os.close(ours)
    assert tool.wait() == 0
    assert b"restoring: " in shown and b"restored snapshot: member" in shown
