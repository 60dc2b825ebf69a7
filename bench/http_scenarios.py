"""Loads over HTTP/1.1: the JSON gateway, and puts while something reads /metrics."""

from __future__ import annotations

import base64
import re
import resource
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request

from members import Member, MemberError
from scenario import Bar, Scenario, Size, bench, faster, loaded

CONNECTIONS = 100
KEYS = 1000
PUT = ("put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000")
_SCRIPT = """
local bodies = {{ {bodies} }}
local at = math.random(#bodies)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  at = at % #bodies + 1
  return wrk.format(nil, "{path}", nil, bodies[at])
end
"""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def _wrk() -> str:
    """The load generator for HTTP/1.1 (Debian: wrk). Errors: MemberError."""
    found = shutil.which("wrk")
    if found is None:
        raise MemberError("wrk makes this load and is not installed: apt-get install wrk")
    return found


def _http_load(member: Member, size: Size, path: str, bodies: list[str]) -> dict:
    connections = min(CONNECTIONS, size.clients_max)
    seconds = max(round(size.seconds), 1) if not size.total else 1
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(path=path, bodies=",".join(f"'{body}'" for body in bodies)))
        script.flush()
        command = [_wrk(), "-t1", f"-c{connections}", "--latency", "-s", script.name]
        url = f"http://{member.endpoint}"
        if size.warm_seconds:
            subprocess.run([*command, f"-d{max(round(size.warm_seconds), 1)}s", url], capture_output=True, check=False)
        before = member.cpu_seconds()
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, f"-d{seconds}s", url], capture_output=True, text=True, check=False)
        cpu = member.cpu_seconds().since(before)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise MemberError(f"wrk failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    figures = read_wrk(done.stdout)
    answered = max(figures["requests"], 1)
    figures["cpu_us"] = cpu / answered * 1e6
    figures["client_cpu_us"] = (used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime) / answered * 1e6
    return figures


def read_wrk(text: str) -> dict:
    """Figures of wrk's report. Errors: MemberError when no request was answered well."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    total = re.search(r"^\s+(\d+) requests in ([\d.]+)(us|ms|s|m)", text, re.M)
    latency = dict(re.findall(r"^\s+(\d+)%\s+([\d.]+(?:us|ms|s|m))", text, re.M))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    requests, failed = int(total[1]), int(refused[1]) if refused else 0
    if requests == failed:
        raise MemberError(f"none of {requests} requests was answered well")
    return {
        "requests_per_second": float(rate[1]),
        "p50_ms": _ms(latency["50"]),
        "p99_ms": _ms(latency["99"]),
        "requests": requests - failed,
        "errors": failed + (sum(map(int, broken.groups())) if broken else 0),
    }


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * _UNITS[unit]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _gateway_put(member: Member, size: Size) -> dict:
    value = _b64(bytes(n * 7 % 256 for n in range(256)))
    bodies = [f'{{"key":"{_b64(b"%08d" % n)}","value":"{value}"}}' for n in range(KEYS)]
    return _http_load(member, size, "/v3/kv/put", bodies)


def _gateway_range(member: Member, size: Size) -> dict:
    bench(member, "put", "--prefix", "range-key", "--key-size", "1", "--val-size", "256", "--total", "1")
    key, end = _b64(b"range-key"), _b64(b"range-kez")
    return _http_load(member, size, "/v3/kv/range", [f'{{"key":"{key}","range_end":"{end}"}}'])


class _Scraper:
    """Reads /metrics every so often, as Prometheus does, while it is open."""

    def __init__(self, member: Member, pause_seconds: float) -> None:
        self._url = f"http://{member.endpoint}/metrics"
        self._pause, self._stop = pause_seconds, threading.Event()
        self.took: list[float] = []
        self.failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Scraper:
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure and exc[0] is None:
            raise MemberError(f"/metrics: {self.failure}")

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            begun = time.monotonic()
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    if not answer.read().startswith(b"#"):
                        self.failure = "not the text of metrics"
            except OSError as e:
                self.failure = str(e)
            self.took.append(time.monotonic() - begun)


def _put_while_scrape(member: Member, size: Size) -> dict:
    quiet = loaded(member, size, 100, 1000, *PUT)
    with _Scraper(member, 1.0):
        figures = loaded(member, size, 100, 1000, *PUT)
    with _Scraper(member, 0.1) as often:
        busy = loaded(member, size, 100, 1000, *PUT)
    figures |= {"quiet_p99_ms": quiet["p99_ms"], "often_p99_ms": busy["p99_ms"]}
    figures["quiet_per_second"] = quiet["requests_per_second"]
    figures["often_per_second"] = busy["requests_per_second"]
    figures["kept"] = figures["requests_per_second"] / quiet["requests_per_second"]
    figures["p99_grown"] = figures["p99_ms"] / quiet["p99_ms"]
    figures["scrape_ms"] = sorted(often.took)[len(often.took) // 2] * 1e3 if often.took else 0.0
    return figures


SCENARIOS = [
    Scenario(
        "gateway-put",
        "put by the JSON gateway over HTTP/1.1, 100 connections",
        _gateway_put,
        [faster(1)],
        shown=("requests_per_second", "p50_ms", "p99_ms", "cpu_us", "client_cpu_us"),
    ),
    Scenario(
        "gateway-range",
        "range of one key by the JSON gateway over HTTP/1.1, 100 connections",
        _gateway_range,
        [faster(1)],
        shown=("requests_per_second", "p50_ms", "p99_ms", "cpu_us", "client_cpu_us"),
    ),
    Scenario(
        "put-while-scrape",
        "put, 1000 clients, while /metrics is read: never, every second, every 100 ms",
        _put_while_scrape,
        [
            Bar("kept", 0.95, at_least=True, text="kept >= 0.95 of its rate while read every second"),
            Bar("p99_grown", 1.2, text="p99_grown <= 1.2: its p99 while read every second, to that while not"),
        ],
        shown=(
            "quiet_per_second",
            "requests_per_second",
            "often_per_second",
            "quiet_p99_ms",
            "p99_ms",
            "often_p99_ms",
            "kept",
            "p99_grown",
            "scrape_ms",
        ),
    ),
]
