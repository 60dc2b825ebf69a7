"""The supervisor with stand-ins for the three kinds of process: start, failure, stop, kill."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_member.py")
DEADLINE_SECONDS = 30.0


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")


def is_alive(pid):
    try:
        # A zombie is no more alive than a gone process: it only waits to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class FakeMember:
    def __init__(self, tmp_path, *flags, data_dir="data", environ=None, **behaviour):
        self.log_path = tmp_path / f"log{time.monotonic_ns()}"
        self.report_path = tmp_path / f"report{time.monotonic_ns()}"
        self.report_path.touch()
        names = {f"FAKE_{process.upper()}": text for process, text in behaviour.items()}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    FAKE,
                    "--data-dir",
                    tmp_path / data_dir,
                    "--listen-peer-urls=http://127.0.0.1:0",
                    "--listen-client-urls=http://127.0.0.1:0",
                    "--advertise-client-urls=http://127.0.0.1:2379",
                    *flags,
                ],
                env=clean | {"FAKE_REPORT": str(self.report_path), "PYTHONPATH": str(ROOT)} | names | (environ or {}),
                stderr=log,
                cwd=tmp_path,
            )

    def report(self):
        return [line.split() for line in self.report_path.read_text().splitlines()]

    def lines(self):
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def messages(self):
        return [line["msg"] for line in self.lines()]

    def pids(self):
        return {words[1]: int(words[2]) for words in self.report() if words[0] == "up"}

    def wait_up(self, processes=3):
        wait_for(lambda: len(self.pids()) == processes or self.process.poll() is not None, "all processes up")
        assert self.process.poll() is None, self.log_path.read_text()

    def wait_ready(self):
        wait_for(
            lambda: "ready to serve client requests" in self.log_path.read_text() or self.process.poll() is not None,
            "ready",
        )
        assert self.process.poll() is None, self.log_path.read_text()

    def wait_end(self):
        status = self.process.wait(DEADLINE_SECONDS)
        wait_for(lambda: not any(is_alive(pid) for pid in self.pids().values()), "the children are gone")
        return status


@pytest.fixture
def start(tmp_path):
    members = []

    def _start(*flags, **kwargs):
        members.append(FakeMember(tmp_path, *flags, **kwargs))
        return members[-1]

    yield _start
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            member.process.kill()
        member.process.wait()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_stops_the_processes_in_the_direction_of_the_data(start, number, status):
    member = start("--frontends=2")
    member.wait_ready()
    member.process.send_signal(number)
    assert member.wait_end() == status
    told = [words for words in member.report() if words[0] in ("term", "end")]
    assert {tuple(words) for words in told[:4]} == {(w, f"frontend{i}") for w in ("term", "end") for i in (0, 1)}
    assert told[4:] == [["term", "consensus"], ["end", "consensus"], ["term", "apply"], ["end", "apply"]]
    assert member.messages()[-1] == "closed etcd server"


def test_every_process_gets_its_rings_status_pages_and_listeners(start):
    member = start("--frontends=3")
    member.wait_ready()  # the stand-ins map and check what they are given
    up = {words[1]: int(words[3]) for words in member.report() if words[0] == "up"}
    assert up == {"apply": 0, "consensus": 1, "frontend0": 1, "frontend1": 1, "frontend2": 1}


@pytest.mark.parametrize("process, number", [("apply", 74), ("consensus", 65), ("frontend0", 70)])
def test_one_process_that_ends_takes_all_along_with_its_status_and_reason(start, process, number):
    member = start(**{process: f"die:{number}"})
    assert member.wait_end() == number
    last = member.lines()[-1]
    assert (last["level"], last["error"]) == ("fatal", f"the {process} process ended with status {number}")


def test_a_process_that_ends_well_without_being_asked_is_a_failure(start):
    member = start(apply="die:0")
    assert member.wait_end() == 1
    assert member.lines()[-1]["error"] == "the apply process ended with status 0"


@pytest.mark.parametrize("process", ["apply", "consensus", "frontend0"])
def test_kill_9_of_one_process_ends_the_member(start, process):
    member = start()
    member.wait_ready()
    os.kill(member.pids()[process], signal.SIGKILL)
    assert member.wait_end() == 1
    assert member.lines()[-1]["error"] == f"the {process} process was ended by signal SIGKILL"


def test_a_process_that_cannot_start_gives_the_reason(start):
    member = start(consensus="fail")
    assert member.wait_end() == 1
    assert member.lines()[-1]["error"] == "no luck today"
    assert sum(line["level"] == "fatal" for line in member.lines()) == 1


@pytest.mark.parametrize("process", ["frontend0", "consensus", "apply"])
def test_a_process_that_fails_while_stopping_is_a_failure(start, process):
    member = start(**{process: "fail-stop:74"})
    member.wait_ready()
    member.process.terminate()
    assert member.wait_end() == 74
    assert member.lines()[-1]["error"] == f"the {process} process ended with status 74"
    assert "closed etcd server" not in member.messages()


@pytest.mark.parametrize("process", ["consensus", "apply"])
def test_a_process_that_does_not_stop_is_killed(start, process):
    member = start(**{process: "stubborn"})
    member.wait_ready()
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM
    assert "process did not stop in time; killing it" in member.messages()
    assert member.messages()[-1] == "closed etcd server"


def test_kill_9_of_the_supervisor_leaves_no_process(start):
    member = start("--frontends=2")
    member.wait_ready()
    member.process.kill()
    member.wait_end()


def test_a_stop_before_the_member_is_ready(start):
    member = start(apply="mute")
    member.wait_up()
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM
    assert "ready to serve client requests" not in member.messages()


def test_a_signal_to_the_whole_group_is_one_orderly_stop(start):
    member = start()
    member.wait_ready()
    for pid in (member.process.pid, *member.pids().values()):
        os.kill(pid, signal.SIGTERM)
    assert member.wait_end() == -signal.SIGTERM
    assert member.messages()[-1] == "closed etcd server"


def test_a_second_member_on_the_data_directory_is_refused(start, tmp_path):
    first = start()
    first.wait_ready()
    second = start()
    assert second.process.wait(DEADLINE_SECONDS) == 1
    assert second.lines()[-1]["error"] == (
        f"data directory {tmp_path / 'data'} is in use by another etcdfast member (process {first.process.pid})"
    )
    assert first.process.poll() is None


def test_the_data_directory_stays_locked_until_the_last_process_is_gone(start):
    first = start()
    first.wait_ready()
    orphan = first.pids()["apply"]
    os.kill(orphan, signal.SIGSTOP)  # SIGKILL still ends a stopped process: what is shown is the order
    first.process.kill()
    first.process.wait()
    second = start()
    second.wait_ready()
    assert not is_alive(orphan)


def test_directories_are_private(start, tmp_path):
    start().wait_ready()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "member").stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_made(start, tmp_path):
    (tmp_path / "file").touch()
    member = start(data_dir="file/data")
    assert member.process.wait(DEADLINE_SECONDS) == 1
    assert member.lines()[-1]["error"] == f"cannot make directory {tmp_path}/file/data: Not a directory"


@pytest.mark.parametrize("frontends", [1, 2])
def test_an_address_in_use_is_refused(start, frontends):
    with socket.socket() as taken:
        # As another member with several frontends would have it: the kernel alone would not refuse.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        member = start(f"--frontends={frontends}", f"--listen-client-urls={url}")
        assert member.process.wait(DEADLINE_SECONDS) == 1
        assert member.lines()[-1]["error"] == f"listen on {url}: address already in use"


def test_an_address_in_use_for_members_is_refused(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        member = start(f"--listen-peer-urls={url}")
        assert member.process.wait(DEADLINE_SECONDS) == 1
        assert member.lines()[-1]["error"] == f"listen on {url}: address already in use"


def test_consensus_listens_on_every_peer_url(start, tmp_path):
    path = tmp_path / "peers"
    member = start(f"--listen-peer-urls=http://127.0.0.1:0,unix://{path}")
    member.wait_ready()
    assert {words[1]: int(words[3]) for words in member.report()} == {"apply": 0, "consensus": 2, "frontend0": 1}
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))


def test_a_restart_in_place_keeps_the_listening_sockets(start, tmp_path):
    path = tmp_path / "clients"
    member = start(f"--listen-client-urls=unix://{path}", consensus="on-usr1:75")
    member.wait_ready()
    before = member.pids()
    inode = path.stat().st_ino
    os.kill(before["consensus"], signal.SIGUSR1)
    wait_for(lambda: len(member.report()) == 6, "every process again")
    wait_for(lambda: member.messages().count("ready to serve client requests") == 2, "ready again")
    after = member.pids()
    assert not set(before.values()) & set(after.values())
    assert not any(is_alive(pid) for pid in before.values())
    assert path.stat().st_ino == inode
    assert sum("restarting the member's processes in place" in text for text in member.messages()) == 1
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    fds = Path(f"/proc/{member.process.pid}/fd")
    held = len(list(fds.iterdir()))
    assert held > 6
    os.kill(after["consensus"], signal.SIGUSR1)
    wait_for(lambda: member.messages().count("ready to serve client requests") == 3, "ready a third time")
    assert len(list(fds.iterdir())) == held, "descriptors leak from start to start"
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM
    assert member.messages()[-1] == "closed etcd server"


def test_a_restart_asked_for_before_anybody_was_ready(start):
    member = start(consensus="first:75", apply="mute")
    wait_for(lambda: sum(words[1] == "consensus" for words in member.report()) == 2, "consensus again")
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM


def test_restarts_in_place_that_never_end_are_given_up(start):
    member = start(consensus="die:75")
    assert member.wait_end() == 70
    assert member.lines()[-1]["error"] == "restarted in place 10 times within 60 s: giving up"


def test_a_stop_while_restarting_is_a_stop(start):
    member = start(consensus="fail-stop:75")
    member.wait_ready()
    member.process.terminate()
    assert member.wait_end() == -signal.SIGTERM
    assert member.messages()[-1] == "closed etcd server"


def test_a_removed_member_stops_as_etcd_does(start):
    member = start(consensus="on-usr1:76")
    member.wait_ready()
    os.kill(member.pids()["consensus"], signal.SIGUSR1)
    assert member.wait_end() == 0
    told = [line for line in member.lines() if line["level"] == "warn"]
    assert told[-2]["msg"] == "server error"
    assert told[-2]["error"] == "the member has been permanently removed from the cluster"
    assert told[-1]["msg"] == "data-dir used by this member must be removed"
    assert [words for words in member.report() if words[0] in ("term", "end")] == [
        ["term", "frontend0"], ["end", "frontend0"], ["term", "apply"], ["end", "apply"],
    ]  # fmt: skip


def test_nobody_is_kept_waiting_by_a_member_that_stops(start, tmp_path):
    path = tmp_path / "clients"
    member = start(f"--listen-client-urls=unix://{path}", apply="stubborn", environ={"FAKE_STUBBORN_SECONDS": "30"})
    member.wait_ready()
    member.process.terminate()
    wait_for(lambda: ["term", "apply"] in member.report(), "only apply is left")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        client.connect(str(path))
    assert not path.exists()


def test_unix_sockets_are_listened_on_and_a_left_over_one_is_replaced(start, tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    start(f"--listen-client-urls=unix://{path}").wait_ready()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_systemd_is_told_when_the_member_is_ready(start, tmp_path):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(DEADLINE_SECONDS)
        start(environ={"NOTIFY_SOCKET": str(path)})
        assert systemd.recv(100) == b"READY=1"


def test_bootstrap_settings_that_do_not_match_are_refused(start):
    member = start("--initial-cluster=other=http://localhost:2380")
    assert member.process.wait(DEADLINE_SECONDS) == 1
    assert member.lines()[-1]["error"] == 'couldn\'t find local name "default" in the initial cluster configuration'
