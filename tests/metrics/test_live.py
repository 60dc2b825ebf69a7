"""The page of a member that works: several frontends, a load, descriptors that run out; profiles of its processes."""

from __future__ import annotations

import json
import re
import socket
import threading

import psutil
import pytest

from tests.harness import pb
from tests.harness.ports import free_port
from tests.harness.servers import EtcdfastServer
from tests.harness.wait import wait_until
from tests.metrics.page import get, scrape

PUT = {"grpc_method": "Put", "grpc_service": "etcdserverpb.KV"}
PROCESSES = ("supervisor", "consensus", "apply", "frontend0", "frontend1")


@pytest.fixture(scope="module")
def server():
    with EtcdfastServer(flags=["--frontends", "2", "--enable-pprof", "--metrics", "extensive"]) as server:
        yield server


class Load:
    """Puts over several connections, so that every frontend has some; `acknowledged` counts those answered."""

    def __init__(self, server, connections=8):
        self.acknowledged = 0
        self._server = server
        self._stop = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._put, args=(i,)) for i in range(connections)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop = True
        for thread in self._threads:
            thread.join()

    def _put(self, i):
        with self._server.client() as client:
            while not self._stop:
                pending = [client.start("Put", pb.PutRequest(key=b"load%d" % i, value=b"x" * 64)) for _ in range(32)]
                good = sum(each.reply().ok for each in pending)
                with self._lock:
                    self.acknowledged += good


def test_counters_of_all_frontends_go_up_whoever_is_asked(server):
    with Load(server) as load:
        wait_until(lambda: load.acknowledged > 500, "some puts")
        before = None
        for _ in range(6):
            known = load.acknowledged
            page = scrape(server.url)
            done = page.value("grpc_server_handled_total", grpc_code="OK", **PUT)
            assert done >= known  # every frontend's are in it
            counters = {
                key: value
                for key, value in page.samples.items()
                if page.types.get(key[0]) == "counter" or key[0].endswith(("_bucket", "_count"))
            }
            if before is not None:
                gone_back = {key: (value, counters[key]) for key, value in before.items() if counters[key] < value}
                assert gone_back == {}
            before = counters
            known = load.acknowledged
            wait_until(lambda known=known: load.acknowledged > known, "further puts")
    assert page.value("grpc_server_started_total", **PUT) >= done


def test_each_process_can_be_profiled(server):
    wanted = {
        "apply": r"etcdfast\._ext\.applyloop\.ApplyLoop\.turn",
        "consensus": r"etcdfast\._ext\.consensusturn\.Turn\.turn_once",
        "frontend0": r"etcdfast\._ext\.frontloop\.turn",
        "frontend1": r"etcdfast\._ext\.frontloop\.turn",
    }
    with Load(server) as load:
        for name, pattern in wanted.items():

            def profiled(name=name, pattern=pattern):
                status, headers, body = get(server.url, f"/debug/profile?process={name}&seconds=0.5")
                assert status == 200, body
                lines = body.decode().splitlines()
                assert all(re.fullmatch(r"\S.*;\S.* \d+", line) or re.fullmatch(r"\S+ \d+", line) for line in lines)
                return any(re.search(pattern, line) for line in lines)

            wait_until(profiled, f"a profile of {name} that names its loop")
        # Python's frames are there too, outermost first.
        body = get(server.url, "/debug/profile?process=consensus&seconds=1&format=collapsed")[2].decode()
        assert re.search(r"consensus/process:run;(consensus/process:turn;)?", body)
        before = load.acknowledged
        wait_until(lambda: load.acknowledged > before, "puts after the profiles")
    assert get(server.url, "/debug/profile?process=supervisor&seconds=0.2")[0] == 200
    assert server.alive


def test_one_profile_at_a_time_and_scrapes_beside_it(server):
    answers = []

    def profile(name):
        status, _, body = get(server.url, f"/debug/profile?process={name}&seconds=2")
        answers.append((status, body if status == 503 else b""))

    both = [threading.Thread(target=profile, args=(name,)) for name in ("apply", "frontend0")]
    for each in both:
        each.start()
    assert scrape(server.url).value("etcd_server_has_leader") == 1
    for each in both:
        each.join(60)
    assert sorted(answers) == [(200, b""), (503, b"another profile is under way\n")]


@pytest.mark.parametrize("query", ["process=nobody", "seconds=x", "seconds=-1", "seconds=301", "format=pb"])
def test_a_profile_that_cannot_be_made_says_what_can(server, query):
    status, _, body = get(server.url, f"/debug/profile?{query}")
    assert status == 400
    assert b"supervisor|consensus|apply|frontend0|frontend1" in body or b"apply|consensus" in body


def test_variables(server):
    status, headers, body = get(server.url, "/debug/vars")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    found = json.loads(body)
    assert {"cmdline", "memstats", "file_descriptor_limit", "raft.status"} <= found.keys()
    assert found["raft.status"]["raftState"] == "StateLeader"
    assert set(found["etcdfast"]["processes"]) == set(PROCESSES)
    assert found["etcdfast"]["apply"]["applied_index"] > 0


def test_a_process_that_is_gone_ends_the_member_and_not_the_page(server):
    """The figures are shared memory: who reads them needs nobody's help."""
    pids = json.loads(get(server.url, "/debug/vars")[2])["etcdfast"]["processes"]
    assert psutil.Process(pids["apply"]["pid"]).is_running()
    psutil.Process(pids["apply"]["pid"]).suspend()
    try:
        assert scrape(server.url).value("etcd_server_is_leader") == 1
    finally:
        psutil.Process(pids["apply"]["pid"]).resume()


def test_no_profiles_unless_asked_for():
    with EtcdfastServer() as server:
        assert get(server.url, "/debug/profile?seconds=0.1")[0] == 404
        assert get(server.url, "/debug/vars")[0] == 200


def test_descriptors_run_out_and_come_back():
    """Connections beyond the limit wait, one line says why, nothing spins, and all goes on once some are closed."""
    with EtcdfastServer(flags=["--frontends", "1", "--log-level", "info"]) as server:
        page = scrape(server.url)
        assert page.value("etcdfast_client_connections_max") > 100
        frontend = next(p for p in server.processes() if "etcdfast.frontend" in " ".join(p.cmdline()))
        used = frontend.num_fds()
        hard = frontend.rlimit(psutil.RLIMIT_NOFILE)[1]
        frontend.rlimit(psutil.RLIMIT_NOFILE, (used + 20, hard))
        held = []
        try:
            for _ in range(60):
                held.append(socket.create_connection((server.host, server.port), 5))
            wait_until(
                lambda: "no file descriptors are left" in server.log_text(), "the line about descriptors", 20
            )
            cpu = sum(frontend.cpu_times()[:2])
            turns = [frontend.num_fds()]
            assert turns[0] <= used + 20
            for connection in held:
                connection.close()
            held.clear()
            wait_until(lambda: _answers(server), "answers after the connections went")
            # Two looks a second, not a loop: what it took is far less than the time.
            assert sum(frontend.cpu_times()[:2]) - cpu < 5
        finally:
            for connection in held:
                connection.close()
        frontend.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        page = scrape(server.url)
        assert page.value("etcdfast_accept_failures_total") >= 1
        assert server.log_text().count("no file descriptors are left") == 1


def _answers(server):
    with server.client(2.0) as client:
        return client.call("Range", pb.RangeRequest(key=b"k")).ok


def test_health_checks_are_counted(server):
    before = scrape(server.url)
    for path in ("/health", "/readyz", "/livez", "/readyz/linearizable_read"):
        assert get(server.url, path)[0] == 200
    page = scrape(server.url)
    # The parser puts _total behind the name of any counter; etcd's has none.
    assert page.types["etcd_server_health_success"] == "counter"
    good, bad = "etcd_server_health_success_total", "etcd_server_health_failures_total"
    assert page.value(good) - before.value(good) == 1
    assert page.value(bad) == before.value(bad)
    assert page.value("etcd_server_healthcheck", type="livez", name="serializable_read") == 1
    assert (
        page.value("etcd_server_healthchecks_total", type="readyz", name="linearizable_read", status="success")
        - before.total("etcd_server_healthchecks_total", type="readyz", name="linearizable_read", status="success")
        == 2
    )


def test_a_listener_for_metrics_alone():
    url = f"http://127.0.0.1:{free_port()}"
    with EtcdfastServer(flags=["--listen-metrics-urls", url]):
        assert scrape(url).value("etcd_server_has_leader") == 1
        assert get(url, "/debug/vars")[0] == 404
