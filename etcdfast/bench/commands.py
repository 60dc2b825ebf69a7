"""Commands of watches and leases: their flags, what they need before the load, and how they are told."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from etcdfast.bench import coordination, runner
from etcdfast.bench.endpoints import Endpoint
from etcdfast.bench.runner import Load, Result, RunError
from etcdfast.bench.workload import Workload, WorkloadError

TOTAL_DEFAULT = 10000
GRANT_CLIENTS_MAX = 200
STM_TTL_SECONDS = 3600


@dataclass(frozen=True)
class Types:
    """Converters of flags, as argparse wants them."""

    positive: Callable
    count: Callable
    seconds: Callable


def add(command: Callable, types: Types, add_rate: Callable) -> None:
    """Declare the commands; `command(name, help, description)` makes a parser."""
    _add_watch(command, types)
    _add_watch_latency(command, types)
    _add_watch_get(command, types)
    _add_leases(command, types, add_rate)
    _add_stm(command, types, add_rate)


def _add_timeout(parser: argparse.ArgumentParser, types: Types) -> None:
    parser.add_argument(
        "--event-timeout",
        type=types.seconds,
        default=30.0,
        metavar="TIME",
        help="give up when nothing has come for this long (30s)",
    )


def _add_watch(command: Callable, types: Types) -> None:
    parser = command(
        "watch",
        "watch keys and put them",
        "Make --streams times --watch-per-stream watchers, which share --watched-key-total keys in turn, then put\n"
        "those keys in turn --put-total times and wait until every watcher has every event. Stream i is on\n"
        "connection i modulo conns. Values begin with the time of their put, so the events tell how old they are.\n"
        "The order of events is checked: one that comes twice, late or split from its revision fails the run.\n\n"
        "As in etcd's tool, watched keys are drawn from --key-space-size different ones, 1 by default: for 10\n"
        "different keys say --watched-key-total=10 --key-space-size=10 --sequential-keys.\n\n"
        "Flags from --prefix on are not in etcd's tool.",
    )
    flag = parser.add_argument
    flag("--streams", type=types.positive, default=10, metavar="N", help="watch streams (10)")
    flag("--watch-per-stream", type=types.positive, default=100, metavar="N", help="watchers on each stream (100)")
    flag("--watched-key-total", type=types.positive, default=1, metavar="N", help="keys that are watched (1)")
    flag("--put-rate", type=types.count, default=0, metavar="N", help="at most N puts a second (0: no limit)")
    flag("--put-total", type=types.count, default=1000, metavar="N", help="puts in all (1000)")
    flag("--key-size", type=types.positive, default=32, metavar="BYTES", help="size of a key (32)")
    flag("--key-space-size", type=int, default=1, metavar="N", help="number of different keys (1)")
    flag("--sequential-keys", action="store_true", help="watch the keys in turn instead of at random")
    flag("--prefix", default="", metavar="TEXT", help="put this before every key")
    flag("--whole-prefix", action="store_true", help="each watcher watches all keys that begin with --prefix")
    flag("--val-size", type=types.count, default=8, metavar="BYTES", help="size of a value (8; below 8 no ages)")
    flag("--prevkv", action="store_true", help="ask for the value before each event")
    flag(
        "--start-revision", type=types.count, default=0, metavar="N", help="watch from this revision on; needs --events"
    )
    flag("--events", type=types.count, default=0, metavar="N", help="wait for N events of others' puts; put nothing")
    flag("--hold", action="store_true", help="when all watchers are made, say so and wait for Enter before the puts")
    _add_timeout(parser, types)


def _add_watch_latency(command: Callable, types: Types) -> None:
    parser = command(
        "watch-latency",
        "time from a put to its events",
        "One client puts one key at --put-rate; every watcher watches that key. Two latencies are told: from the\n"
        "put's answer to the event, as etcd's tool does it (0 when the event came first), and from the sending of\n"
        "the put to the event. The puts have a connection of their own.",
    )
    flag = parser.add_argument
    flag("--streams", type=types.positive, default=10, metavar="N", help="watch streams (10)")
    flag("--watchers-per-stream", type=types.positive, default=10, metavar="N", help="watchers on each stream (10)")
    flag("--prevkv", action="store_true", help="ask for the value before each event")
    flag("--put-total", type=types.positive, default=1000, metavar="N", help="puts in all (1000)")
    flag("--put-rate", type=types.count, default=100, metavar="N", help="puts a second (100; 0: no limit)")
    flag("--key-size", type=types.positive, default=32, metavar="BYTES", help="size of the key (32)")
    flag("--val-size", type=types.count, default=32, metavar="BYTES", help="size of a value (32)")
    _add_timeout(parser, types)


def _add_watch_get(command: Callable, types: Types) -> None:
    parser = command(
        "watch-get",
        "reads while watchers catch up",
        "Put one key --events times, then let --watchers watch it from the first of those puts on, while one client\n"
        "reads another key (serializable) until every watcher has every event.",
    )
    flag = parser.add_argument
    flag("--watchers", type=types.positive, default=10000, metavar="N", help="watchers in all (10000)")
    flag("--streams", type=types.positive, default=1, metavar="N", help="watch streams (1)")
    flag("--events", type=types.positive, default=8, metavar="N", help="events for each watcher (8)")
    _add_timeout(parser, types)


def _add_leases(command: Callable, types: Types, add_rate: Callable) -> None:
    renew = command(
        "lease-keepalive",
        "renew leases",
        "Each client grants itself a lease and renews it again and again: as etcd's tool does, on a stream of its\n"
        "own for every renewal, or with --one-stream on one stream for all, as etcd's client library keeps a\n"
        "lease alive.",
    )
    add_rate(renew, "renewals")
    renew.add_argument("--ttl", type=types.positive, default=100, metavar="SECONDS", help="TTL of the leases (100)")
    renew.add_argument("--one-stream", action="store_true", help="one stream for all renewals of a client")

    grant = command(
        "lease-grant",
        "grant leases (not in etcd's tool)",
        "Grant --total leases with ids chosen here. With --attach-keys each then gets a key of its own. With\n"
        "--expire-together the TTL is counted down while they are granted, so that all end within the same second.",
    )
    add_rate(grant, "grants")
    grant.add_argument("--ttl", type=types.positive, default=3600, metavar="SECONDS", help="TTL of the leases (3600)")
    grant.add_argument("--attach-keys", action="store_true", help="then put one key for each lease")
    grant.add_argument("--expire-together", action="store_true", help="all end --ttl (at most 127) seconds from now")
    grant.add_argument("--prefix", default="lease/", metavar="TEXT", help="put this before every key (lease/)")
    grant.add_argument("--key-size", type=types.positive, default=8, metavar="BYTES", help="size of a key (8)")
    grant.add_argument("--val-size", type=types.count, default=8, metavar="BYTES", help="size of a value (8)")


def _add_stm(command: Callable, types: Types, add_rate: Callable) -> None:
    parser = command(
        "stm",
        "software transactions",
        "Transactions of etcd's client library: read --keys-per-txn keys one after another, write the first\n"
        "--txn-wr-percent of them, commit all in one Txn that compares what was read, and try again on conflict.\n"
        "Latency is that of a whole transaction, with its lock. As in etcd's tool the number of writes is rounded\n"
        "down: one key with 50 percent writes nothing. Leases of the locks live for an hour.",
    )
    flag = parser.add_argument
    flag(
        "--isolation",
        default="r",
        choices=coordination.STM_ISOLATIONS,
        help="c: read committed, r: repeatable reads, s: serializable, ss: serializable snapshot (r)",
    )
    flag("--keys", type=int, default=1, metavar="N", help="number of different keys (1)")
    flag("--keys-per-txn", type=int, default=1, metavar="N", help="keys of a transaction (1)")
    flag("--txn-wr-percent", type=int, default=50, metavar="N", help="percentage of its keys that are written (50)")
    flag(
        "--stm-locker",
        default="stm",
        choices=coordination.STM_LOCKERS,
        help="stm: no lock; lock-client: the library's mutex around each transaction; lock-rpc: the lock service (stm)",
    )
    flag("--val-size", type=types.count, default=8, metavar="BYTES", help="size of a value (8)")
    add_rate(parser, "transactions")


# ---- what a command line means ------------------------------------------------------------------


def _watch(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    if args.prefix == "" and args.whole_prefix and not args.events:
        raise WorkloadError("--whole-prefix with an empty --prefix watches all keys: say with --events how many events")
    return coordination.watch(
        streams=args.streams,
        watchers_each=args.watch_per_stream,
        watched_keys=args.watched_key_total,
        puts=0 if args.events else args.put_total,
        key_size=args.key_size,
        key_space=args.key_space_size,
        sequential=args.sequential_keys,
        prefix=os.fsencode(args.prefix),
        whole_prefix=args.whole_prefix,
        val_size=args.val_size,
        start_revision=args.start_revision,
        prev_kv=args.prevkv,
        events=args.events,
        hold=args.hold,
        timeout_seconds=args.event_timeout,
        seed=args.seed,
    )


def _watch_latency(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    return coordination.watch_latency(
        streams=args.streams,
        watchers_each=args.watchers_per_stream,
        puts=args.put_total,
        key_size=args.key_size,
        val_size=args.val_size,
        prev_kv=args.prevkv,
        timeout_seconds=args.event_timeout,
    )


def _watch_get(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    from etcdfast.bench.side_calls import put_times

    coordination.check_watch_get(args.streams, args.watchers)
    revision = put_times(endpoints[0], b"watchkey", args.events)
    return coordination.watch_get(
        streams=args.streams,
        watchers=args.watchers,
        events=args.events,
        key=b"watchkey",
        revision=revision,
        timeout_seconds=args.event_timeout,
    )


def _lease_keepalive(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    return coordination.lease_keepalive(coordination.new_lease_base(), args.one_stream)


def _lease_grant(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    end_ns = 0
    if args.expire_together:
        if args.ttl > coordination.TTL_TOGETHER_MAX:
            raise WorkloadError(
                f"--expire-together needs a --ttl of at most {coordination.TTL_TOGETHER_MAX}, got {args.ttl}"
            )
        end_ns = time.monotonic_ns() + args.ttl * 1_000_000_000
    if args.attach_keys and not args.total and args.duration:
        raise WorkloadError("--attach-keys needs --total")
    return coordination.lease_grant(args.ttl, coordination.new_lease_base(), end_ns)


def _stm(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    return coordination.stm(
        isolation=args.isolation,
        locker=args.stm_locker,
        keys=args.keys,
        keys_per_txn=args.keys_per_txn,
        write_percent=args.txn_wr_percent,
        val_size=args.val_size,
        lease_base=coordination.new_lease_base(),
    )


BUILDERS: dict[str, Callable[[argparse.Namespace, list[Endpoint]], Workload]] = {
    "watch": _watch,
    "watch-latency": _watch_latency,
    "watch-get": _watch_get,
    "lease-keepalive": _lease_keepalive,
    "lease-grant": _lease_grant,
    "stm": _stm,
}


def load_of(args: argparse.Namespace, work: Workload) -> Load:
    """How hard the load of a command line is."""
    clients, processes = args.clients, args.processes or runner.default_processes(args.conns)
    if work.watching:
        rate, total = getattr(args, "put_rate", 0), getattr(args, "put_total", 0)
        if work.watching.apart:
            clients = processes = 1
        elif args.events:
            total = 0
        if not total and not work.watching.concurrent:
            clients = 0
    else:
        rate = args.rate
        total = args.total if args.total is not None else (0 if args.duration else TOTAL_DEFAULT)
    return Load(
        conns=args.conns,
        clients=clients,
        total=total,
        rate=rate,
        seconds=args.duration,
        processes=processes,
        dial_timeout_seconds=args.dial_timeout,
        seed=args.seed,
        acknowledged=bool(getattr(args, "acknowledged", "")),
    )


def progress_total(work: Workload, load: Load) -> int:
    return work.watching.watchers + work.watching.events if work.watching else load.total


def prepare(args: argparse.Namespace, work: Workload, endpoints: list[Endpoint], load: Load) -> None:
    """What must be there before the load: a lease for each client. Errors: RunError."""
    if args.command == "lease-keepalive" or args.command == "stm" and args.stm_locker != "stm":
        grants = coordination.lease_grant(getattr(args, "ttl", STM_TTL_SECONDS), work.lease_base)
        many = min(load.clients, GRANT_CLIENTS_MAX)
        first = replace(load, clients=many, conns=min(load.conns, many), total=load.clients, rate=0, seconds=0)
        result = runner.run(grants, endpoints, first)
        if result.count != load.clients:
            raise RunError(f"{load.clients - result.count} of {load.clients} leases were not granted: "
                           f"{next(iter(result.errors), 'interrupted')}")  # fmt: skip


def follow_up(args: argparse.Namespace, work: Workload, endpoints: list[Endpoint], load: Load) -> Result | None:
    """The second load of a command that has two."""
    if args.command != "lease-grant" or not args.attach_keys:
        return None
    puts = coordination.lease_put(os.fsencode(args.prefix), args.key_size, args.val_size, load.total, work.lease_base)
    return runner.run(puts, endpoints, load)


class Pause:
    """Says that the watchers are made; then True once a line, or the end, came on standard input."""

    def __init__(self, work: Workload, out) -> None:
        self._work, self._out = work, out

    def __call__(self, made: int | None) -> bool:
        if made is not None:
            streams = self._work.watching.streams
            print(f"watching: {made} watchers on {streams} streams; press Enter to go on", file=self._out, flush=True)
        if not select.select([sys.stdin], [], [], 0)[0]:
            return False
        sys.stdin.readline()
        return True


def print_watch(work: Workload, result: Result, report, style: dict, out) -> None:
    watch, kinds = result.watch, result.kinds
    create = report.text_report(kinds[1], watch.make_seconds, {}, **style)
    print(f"Watch creation summary:\n{create}", end="", file=out)
    if kinds[0].count:
        name = "Get during watch" if work.name == "watch-get" else "Put"
        print(f"\n{name} summary:\n{report.text_report(kinds[0], result.seconds, {}, **style)}", end="", file=out)
    seconds = report.event_seconds(result)
    rate = watch.events / seconds if seconds else 0.0
    print(f"\nWatch events received summary:\n\nTotal:\t{watch.events} events in {watch.responses} responses", file=out)
    print(f"  Time:\t{seconds:.4f} secs.\n  Events/sec:\t{rate:.4f}", file=out)
    for text, kind in (("the put was sent", kinds[2]), ("the put was answered", kinds[3])):
        if kind.count:
            print(f"\nTime since {text}:{report.text_report(kind, seconds, {}, **style)}", end="", file=out)
    if result.errors:
        print(report.text_report(runner.KindResult(), 0, result.errors, **style), end="", file=out)


def judge_watch(work: Workload, result: Result, prog: str) -> int:
    """Exit status; a run that misses events says so."""
    missing = work.watching.watchers - result.watch.made
    if missing > 0:
        print(f"{prog}: {missing} of {work.watching.watchers} watchers were not made", file=sys.stderr)
        return 1
    missing = work.watching.events - result.watch.events
    if missing > 0:
        print(f"{prog}: {missing} of {work.watching.events} events did not come", file=sys.stderr)
    return 1 if missing > 0 or result.errors else 0
