"""Rotation: no line is lost or torn while several processes write, and names and limits are lumberjack's."""

import json
import multiprocessing
import os
import re
import socket
import threading

import pytest

from etcdfast import log
from etcdfast.config.values import log_rotation
from etcdfast.logfile import RotatingFile, backup_name
from etcdfast.supervisor.oldlogs import backups, tidy

MIB = 1 << 20
SMALL = log_rotation('{"maxsize": 1}')


@pytest.fixture(autouse=True)
def restored():
    yield
    log.configure()


def write_lines(path, writer, count):
    file = RotatingFile(path, SMALL)
    for number in range(count):
        file.write(b"%d %d %b\n" % (writer, number, b"x" * 1000))


def test_no_line_is_lost_between_processes_and_threads(tmp_path):
    path = str(tmp_path / "etcd.log")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_lines, args=(path, i, 2000)) for i in range(3)]
    for writer in writers:
        writer.start()
    file = RotatingFile(path, SMALL)
    threads = [
        threading.Thread(target=lambda i=i: [file.write(b"%d %d %b\n" % (i, n, b"y" * 1000)) for n in range(500)])
        for i in (3, 4)
    ]
    for thread in threads:
        thread.start()
    for each in (*writers, *threads):
        each.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    older = [file for _, file in backups(path)]
    assert len(older) >= 6
    lines = []
    for file in (*reversed(older), path):
        assert os.path.getsize(file) <= MIB
        with open(file, "rb") as source:
            lines += source.read().splitlines()
    seen = {i: [] for i in range(5)}
    for line in lines:
        match = re.fullmatch(rb"(\d) (\d+) [xy]{1000}", line)
        seen[int(match[1])].append(int(match[2]))
    assert seen == {i: list(range(2000 if i < 3 else 500)) for i in range(5)}


def test_names_are_lumberjacks():
    assert backup_name("/d/etcd.log", 1_700_000_000.25, False) == "/d/etcd-2023-11-14T22-13-20.250.log"
    assert backup_name("log", 0, False) == "log-1970-01-01T00-00-00.000"


def test_limits(tmp_path):
    path = str(tmp_path / "e.log")
    now = 1_700_000_000
    for day in range(4):
        open(backup_name(path, now - day * 86_400, False), "w").close()
    tidy(path, log_rotation('{"maxage": 2}'), now + 1)
    assert [seconds for seconds, _ in backups(path)] == [now, now - 86_400]
    tidy(path, log_rotation('{"maxbackups": 1, "compress": true}'), now)
    assert [file for _, file in backups(path)] == [backup_name(path, now, False) + ".gz"]


def test_a_new_file_has_the_mode_of_the_old_one_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "log"
    file = RotatingFile(str(path), SMALL)
    path.chmod(0o640)
    for _ in range(2):
        file.write(b"x" * (MIB - 1) + b"\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_size == MIB


def test_a_file_renamed_or_removed_by_somebody_else_is_begun_anew(tmp_path):
    path = tmp_path / "log"
    file = RotatingFile(str(path), SMALL)
    file.write(b"one\n")
    path.rename(tmp_path / "other")
    file.write(b"two\n")
    assert path.read_bytes() == b"two\n"


@pytest.mark.parametrize(
    "text, maxsize", [("{}", 100), ('{"MaxSize": 3, "filename": "/x"}', 3), ('{"maxsize": 0}', 100)]
)
def test_settings_of_rotation(text, maxsize):
    assert log_rotation(text).maxsize == maxsize


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_journal(tmp_path, monkeypatch, form):
    path = str(tmp_path / "journal")
    monkeypatch.setattr(log, "JOURNAL_SOCKET", path)
    with pytest.raises(log.LogError, match=rf"^can't find journal \(dial unixgram {path}: connect: no such file"):
        log.configure(outputs=("systemd/journal",))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        log.configure(outputs=("systemd/journal",), form=form)
        log.warn("two\nlines", x=1)
        head, _, message = journal.recv(10_000).partition(b"MESSAGE\n")
    assert head == b"PRIORITY=4\nSYSLOG_IDENTIFIER=etcdfast\n"
    assert int.from_bytes(message[:8], "little") == len(message) - 9
    assert message.endswith(b"\n")
    if form == "json":
        assert json.loads(message[8:])["msg"] == "two\nlines"
