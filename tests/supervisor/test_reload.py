"""SIGHUP, rotation, what systemd hears, and settings of the system: locked memory, shared ports."""

import gzip
import os
import signal
import socket
from pathlib import Path

import pytest

from etcdfast.supervisor.listeners import open_listeners
from tests.supervisor.test_member import DEADLINE_SECONDS, start, wait_for  # noqa: F401 (fixture)


def reloads(member):
    return [words[1:] for words in member.report() if words[0] == "reload"]


def test_every_process_hears_of_a_reload(start):  # noqa: F811
    member = start("--log-level=warn", "--quota-backend-bytes=5", "--frontends=2")
    member.wait_up(4)
    wait_for(lambda: member.report_path.read_text().count("up ") == 4, "up")
    member.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(reloads(member)) == 4, "all processes have reloaded")
    assert sorted(reloads(member)) == [
        [process, "warn", "5"] for process in ("apply", "consensus", "frontend0", "frontend1")
    ]
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM


def test_a_reload_asked_for_before_the_member_is_ready_comes_when_it_is(start, tmp_path):  # noqa: F811
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(DEADLINE_SECONDS)
        member = start(environ={"NOTIFY_SOCKET": str(path)}, consensus="wait-usr1")
        member.wait_up()
        member.process.send_signal(signal.SIGHUP)
        assert reloads(member) == []
        os.kill(member.pids()["consensus"], signal.SIGUSR1)
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"
        wait_for(lambda: len(reloads(member)) == 3, "all processes have reloaded")
        member.process.terminate()
        assert systemd.recv(100) == b"STOPPING=1"
        assert member.wait_end() == -signal.SIGTERM


def test_log_files_are_opened_anew(start, tmp_path):  # noqa: F811
    path, older = tmp_path / "log", tmp_path / "log.1"
    member = start(f"--log-outputs={path}")
    wait_for(lambda: path.exists() and "ready to serve client requests" in path.read_text(), "ready")
    path.rename(older)
    member.process.send_signal(signal.SIGHUP)
    wait_for(path.exists, "a new file")
    wait_for(lambda: len(reloads(member)) == 3, "all processes have reloaded")
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM
    assert "closed etcd server" in path.read_text()
    assert "closed etcd server" not in older.read_text()


def ready_under_a_watchdog(start, systemd, path, **behaviour):  # noqa: F811
    systemd.bind(str(path))
    systemd.settimeout(DEADLINE_SECONDS)
    start(environ={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000"}, **behaviour)
    while systemd.recv(100) != b"READY=1":
        pass  # until then it is taken to live


def test_the_watchdog_hears_of_loops_that_come_round(start, tmp_path):  # noqa: F811
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        ready_under_a_watchdog(start, systemd, tmp_path / "notify")
        for _ in range(3):
            assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("process", ["consensus", "apply"])
def test_the_watchdog_does_not_hear_of_a_loop_that_is_stuck(start, tmp_path, process):  # noqa: F811
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        ready_under_a_watchdog(start, systemd, tmp_path / "notify", **{process: "stuck"})
        systemd.settimeout(0.7)
        with pytest.raises(TimeoutError):
            systemd.recv(100)


def test_rotated_files_are_tidied_up(start, tmp_path):  # noqa: F811
    path = tmp_path / "etcd.log"
    older = [tmp_path / f"etcd-2026-11-2{day}T00-00-00.000.log" for day in range(5)]
    other = tmp_path / "etcd-mine.log"
    for file in (*older, other):
        file.write_text(file.name)
    rotation = '{"maxbackups": 2, "compress": true}'
    start(f"--log-outputs={path}", "--enable-log-rotation", f"--log-rotation-config-json={rotation}")
    packed = [file.with_name(file.name + ".gz") for file in older[3:]]
    wait_for(lambda: sorted(tmp_path.glob("etcd-*")) == sorted([*packed, other]), "packed or gone")
    assert gzip.decompress(packed[0].read_bytes()).decode() == older[3].name
    wait_for(lambda: "ready to serve client requests" in path.read_text(), "ready")


@pytest.mark.skipif(os.geteuid() != 0, reason="locking memory is a right of root's, or needs a limit")
def test_memory_can_be_locked(start):  # noqa: F811
    member = start("--memory-mlock")
    member.wait_ready()
    for pid in member.pids().values():
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmLck:"))
        assert int(line.split()[1]) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_can_be_shared_on_request(count):
    first = open_listeners([("http://127.0.0.1:0", "client")], count, shared=True)
    url = first[0][0][0]
    assert {listeners[0][0] for listeners in first} == {url}
    second = open_listeners([(url, "client")], 1, shared=True)
    for _, listener, role in (pair for listeners in (*first, *second) for pair in listeners):
        assert role == "client"
        listener.close()
