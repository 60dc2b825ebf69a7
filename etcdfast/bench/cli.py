"""etcdfast-bench: flags of etcd's benchmark tool, a native load generator, the same report."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import replace

from etcdfast.bench import commands, runner, workload
from etcdfast.bench.endpoints import Endpoint, EndpointError, parse_endpoints
from etcdfast.bench.runner import RunError
from etcdfast.bench.workload import Workload, WorkloadError
from etcdfast.client.security import Security, SecurityError
from etcdfast.config import values

PROG = "etcdfast-bench"

DESCRIPTION = """\
Put load on an etcd-compatible server and report throughput and latency.

Each of --clients sends its next request as soon as the last one is answered (closed loop). The
clients are spread over --conns connections (client i uses connection i modulo conns), the
connections over the --endpoints. Flags and report are those of etcd's own benchmark tool; the
generator is native code that takes about 1 us of CPU a request, so it can run beside the server.
"""

EXAMPLES = """\
examples:
  etcdfast-bench put --val-size=256 --total=100000 --key-space-size=100000 --sequential-keys
                                    one client, one connection: the latency of a write
  etcdfast-bench --conns=100 --clients=1000 put --val-size=256 --total=500000 --key-space-size=100000
                                    what the server can take
  etcdfast-bench --conns=100 --clients=1000 range foo --consistency=s --total=500000
  etcdfast-bench --clients=100 txn-mixed --rw-ratio=4 --rate=5000 --total=100000 --sample
  etcdfast-bench --conns=100 watch --streams=100 --watched-key-total=10 --key-space-size=10 --sequential-keys
                                    100 streams x 100 watchers: events a second
  etcdfast-bench --conns=100 --clients=1000 lease-keepalive --total=200000

Global flags may stand before or after the command. `etcdfast-bench put --help` shows the flags of
put. The exit status is 0 when requests were answered (failed ones are in the error distribution),
1 when none was or the server went away, 2 for a wrong command line, 130 after Ctrl-C (which stops
the load and still prints the report).
"""


class UsageError(Exception):
    """One line for the person who typed the command."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message} (see {self.prog} --help)")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return value


def _seconds(text: str) -> float:
    try:
        value = values.duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a duration such as 500ms or 1m30s, got {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a duration of 0 or more, got {text!r}")
    return value


def _add_globals(parser: argparse.ArgumentParser, top: bool) -> None:
    """Flags of every command; below the top they have no default, so as not to undo the top's value."""

    def add(name, default, **more):
        group.add_argument(f"--{name}", default=default if top else argparse.SUPPRESS, **more)

    group = parser.add_argument_group("global flags")
    add(
        "endpoints",
        "127.0.0.1:2379",
        metavar="LIST",
        help="host:port, http://host:port, https://host:port or unix:///path, comma-separated (127.0.0.1:2379)",
    )
    add("conns", 1, type=_positive, metavar="N", help="connections (1)")
    add("clients", 1, type=_positive, metavar="N", help="clients, each with one request under way (1)")
    add("precise", False, action="store_true", help="print numbers in full precision")
    add("sample", False, action="store_true", help="add throughput and latency of every second to the report")
    add(
        "dial-timeout",
        5.0,
        type=_seconds,
        metavar="TIME",
        help="give up when there is no connection for this long (5s)",
    )
    add(
        "duration",
        0.0,
        type=_seconds,
        metavar="TIME",
        help="stop after this time; --total is then no limit unless given",
    )
    add("cacert", "", metavar="FILE", help="CA that signed the server's certificate: use TLS")
    add("cert", "", metavar="FILE", help="certificate of the client")
    add("key", "", dest="key_file", metavar="FILE", help="key of --cert")
    add("insecure-skip-tls-verify", False, action="store_true", help="take any certificate of the server")
    add("user", "", metavar="NAME:PASSWORD", help="authenticate first, and call in the name of this user")
    add("processes", 0, type=_count, metavar="N", help="generator processes (0: one for every 4 cores)")
    add("seed", 1, type=_count, metavar="N", help="seed of random keys and values (1)")
    add("report-json", "", metavar="FILE", help="also write the report as JSON, - for standard output")
    add("no-progress", False, action="store_true", help="no progress bar")


def _add_rate(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--rate", type=_count, default=0, metavar="N", help=f"at most N {what} a second (0: no limit)")
    parser.add_argument("--total", type=_positive, default=None, metavar="N", help="requests in all (10000)")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-size", type=_positive, default=8, metavar="BYTES", help="size of a key (8)")
    parser.add_argument("--val-size", type=_count, default=8, metavar="BYTES", help="size of a value (8)")
    parser.add_argument("--key-space-size", type=int, default=1, metavar="N", help="number of different keys (1)")


def _add_consistency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--consistency", default="l", metavar="l|s", help="l: linearizable, s: serializable (l)")


def build_parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=PROG, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw, allow_abbrev=False)
    _add_globals(parser, top=True)
    choices = parser.add_subparsers(dest="command", metavar="command", title="commands", parser_class=Parser)

    def command(name: str, help_text: str, description: str) -> Parser:
        made = choices.add_parser(
            name, help=help_text, description=description, formatter_class=raw, allow_abbrev=False
        )
        _add_globals(made, top=False)
        return made

    put = command(
        "put",
        "put keys",
        "Put random keys out of --key-space-size different ones, or those keys in turn with --sequential-keys.\n"
        "Values are random bytes. Key i is the number i as a zigzag varint, filled with zeros to --key-size.",
    )
    _add_sizes(put)
    _add_rate(put, "puts")
    put.add_argument("--sequential-keys", action="store_true", help="keys in turn instead of at random")
    put.add_argument("--prefix", default="", metavar="TEXT", help="put this before every key")
    put.add_argument(
        "--compact-interval", type=_seconds, default=0.0, metavar="TIME", help="compact that often, e.g. 5m (0: never)"
    )
    put.add_argument(
        "--compact-index-delta", type=_count, default=1000, metavar="N", help="revisions a compaction keeps (1000)"
    )
    put.add_argument(
        "--acknowledged",
        default="",
        metavar="FILE",
        help="write which requests were answered well: bit n %% 8 of byte n // 8 is request n",
    )
    put.add_argument("--check-hashkv", action="store_true", help="print the hash of all keys at the end")

    range_ = command(
        "range",
        "read a key or a range",
        "Read KEY, or the keys from KEY up to (not including) END-RANGE, again and again.",
    )
    range_.add_argument("key")
    range_.add_argument("end_range", nargs="?", default="", metavar="end-range")
    _add_rate(range_, "range requests")
    _add_consistency(range_)
    range_.add_argument("--limit", type=_count, default=0, metavar="N", help="at most N keys an answer (0: no limit)")
    range_.add_argument("--prefix", action="store_true", help="read all keys that begin with KEY")
    range_.add_argument("--count-only", action="store_true", help="ask for the number of keys only")
    range_.add_argument("--keys-only", action="store_true", help="ask for keys without values")
    range_.add_argument("--stream", action="store_true", help="use RangeStream (etcd 3.7, etcdfast)")

    txn_put = command(
        "txn-put", "put keys in transactions", "Transactions of --txn-ops puts each, over the keys in turn."
    )
    _add_sizes(txn_put)
    _add_rate(txn_put, "transactions")
    txn_put.add_argument("--txn-ops", type=int, default=1, metavar="N", help="puts in a transaction (1)")
    txn_put.add_argument("--prefix", default="", metavar="TEXT", help="put this before every key (not in etcd's tool)")

    mixed = command(
        "txn-mixed",
        "read and write in transactions",
        "Transactions of one operation: a read of the range KEY END-RANGE (by default all keys), or a put.\n"
        "Reads and writes are reported apart.",
    )
    mixed.add_argument("key", nargs="?", default="")
    mixed.add_argument("end_range", nargs="?", default="", metavar="end-range")
    _add_sizes(mixed)
    _add_rate(mixed, "transactions")
    _add_consistency(mixed)
    mixed.add_argument("--end-key", default="", metavar="KEY", help="end of the range that is read")
    mixed.add_argument("--limit", type=_count, default=1000, metavar="N", help="at most N keys a read (1000)")
    mixed.add_argument("--rw-ratio", type=_ratio, default=1.0, metavar="R", help="reads for each write (1)")
    commands.add(command, commands.Types(_positive, _count, _seconds), _add_rate)
    return parser


def _plain_switches(argv: list[str], parser: Parser) -> list[str]:
    """Go's --switch=true and --switch=false, in argparse's words."""
    switches = set()
    parsers = [parser, *parser._subparsers._group_actions[0].choices.values()]
    for one in parsers:
        switches.update(o for a in one._actions if isinstance(a, argparse._StoreTrueAction) for o in a.option_strings)
    out = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        if equals and name in switches:
            try:
                if values.boolean(value):
                    out.append(name)
            except ValueError:
                raise UsageError(f"argument {name}: expected true or false, got {value!r}") from None
        else:
            out.append(arg)
    return out


def _serializable(args: argparse.Namespace) -> bool:
    if args.consistency not in ("l", "s"):
        raise UsageError(
            f"argument --consistency: expected l (linearizable) or s (serializable), got {args.consistency!r}"
        )
    return args.consistency == "s"


def _workload(args: argparse.Namespace, endpoints: list[Endpoint]) -> Workload:
    if args.command.startswith("watch") and args.duration:
        raise UsageError(f"{args.command} ends with its last event: --duration does not apply")
    if args.command in commands.BUILDERS:
        return commands.BUILDERS[args.command](args, endpoints)
    if args.command == "put":
        return workload.put(
            args.key_size, args.val_size, args.key_space_size, args.sequential_keys, os.fsencode(args.prefix)
        )
    if args.command == "txn-put":
        return workload.txn_put(
            args.key_size, args.val_size, args.key_space_size, args.txn_ops, os.fsencode(args.prefix)
        )
    serializable = _serializable(args)
    key, end = os.fsencode(args.key), os.fsencode(args.end_range)
    if args.command == "txn-mixed":
        if args.end_key and args.end_range:
            raise UsageError("give the end of the range either as an argument or as --end-key")
        end = end or os.fsencode(args.end_key)
        # the whole key space, spelled as etcd spells it: from the least key on
        if not key:
            key, end = b"\0", end or b"\0"
        request = workload.range_request(key, end, limit=args.limit, serializable=serializable)
        return workload.txn_mixed(args.key_size, args.val_size, args.key_space_size, args.rw_ratio, request)
    if args.prefix:
        if end:
            raise UsageError("--prefix and end-range exclude each other")
        end = workload.prefix_end(key)
        key = key or b"\0"
    elif not key and not end:
        raise UsageError("range: the key is empty (use --prefix '' for all keys)")
    request = workload.range_request(
        key or b"\0",
        end,
        limit=args.limit,
        serializable=serializable,
        keys_only=args.keys_only,
        count_only=args.count_only,
    )
    return workload.range_(request, args.stream)


def _progress(args: argparse.Namespace, total: int):
    """A bar on a terminal, nothing elsewhere."""
    if args.no_progress or not sys.stderr.isatty():
        return None, lambda: None
    from tqdm import tqdm

    bar = tqdm(
        total=total or None,
        unit="" if args.command.startswith("watch") else "req",
        unit_scale=True,
        file=sys.stderr,
        leave=True,
        mininterval=0.1,
    )

    def show(done: int) -> None:
        bar.update(done - bar.n)

    return show, bar.close


def _flags(args: argparse.Namespace) -> dict:
    flags = {name.replace("_", "-"): value for name, value in sorted(vars(args).items()) if name != "command"}
    flags["user"] = flags["user"].partition(":")[0]
    return flags


def _in_the_name_of(args: argparse.Namespace, endpoints: list[Endpoint]) -> list[Endpoint]:
    """The endpoints with the token of --user."""
    if not args.user:
        return endpoints
    name, colon, password = args.user.partition(":")
    if not colon:
        raise UsageError(f"argument --user: expected NAME:PASSWORD, got {args.user!r}")
    metadata = runner.authenticate(endpoints[0], name, password, args.dial_timeout)
    return [replace(endpoint, metadata=metadata) for endpoint in endpoints]


def _run(argv: list[str]) -> int:
    parser = build_parser()
    args = parser.parse_args(_plain_switches(argv, parser))
    if not args.command:
        raise UsageError(f"a command is missing: put, range, watch or another (see {PROG} --help)")
    security = Security(args.cacert, args.cert, args.key_file, args.insecure_skip_tls_verify)
    security.check()
    endpoints = _in_the_name_of(args, parse_endpoints(args.endpoints, security))
    json_file = _open_json(args.report_json)
    acknowledged = _open_bits(getattr(args, "acknowledged", ""))
    to_stdout = args.report_json == "-"
    say = sys.stderr if to_stdout else sys.stdout
    work = _workload(args, endpoints)
    if args.clients < args.conns and not work.watching:
        # etcd's tool opens them all and leaves some without a client
        print(f"note: {args.conns - args.clients} of {args.conns} connections have no client", file=sys.stderr)
    load = commands.load_of(args, work)
    if hasattr(args, "consistency"):
        print(f"bench with {'serializable' if args.consistency == 's' else 'linearizable'} range", file=say)
    side = None
    if getattr(args, "compact_interval", 0):
        from etcdfast.bench.side_calls import Compactor

        side = Compactor(endpoints[0], args.compact_interval, args.compact_index_delta)
    commands.prepare(args, work, endpoints, load)
    show, close = _progress(args, commands.progress_total(work, load))
    try:
        with side or _nothing():
            result = runner.run(work, endpoints, load, show, commands.Pause(work, say))
    finally:
        close()
    # not before the load has ended: this imports numpy (see runner)
    from etcdfast.bench import report

    _print_report(args, work, result, report, say)
    told = report.json_report(args.command, _flags(args), work.labels, result)
    if work.ttl_end_ns:
        told["expire_at_ns"] = work.ttl_end_ns  # CLOCK_MONOTONIC; the leases end within the second after it
    further = commands.follow_up(args, work, endpoints, load)
    if further is not None:
        print("Keys attached:", end="", file=say)
        print(report.text_report(further.kinds[0], further.seconds, further.errors, **_style(args)), end="", file=say)
        told["attached"] = report.json_report("attach", {}, [""], further)
    if json_file is not None:
        with json_file:
            json.dump(told, json_file, indent=1)
            json_file.write("\n")
    if acknowledged is not None:
        with acknowledged:
            acknowledged.write(result.acknowledged)
    if getattr(args, "check_hashkv", False):
        from etcdfast.bench.side_calls import hashkv_summary

        print(hashkv_summary(endpoints[0]), file=say)
    if result.aborted:
        print(f"{PROG}: stopped: no connection for {args.dial_timeout:g}s: {result.aborted}", file=sys.stderr)
        return 1
    if result.interrupted:
        return 130
    if work.watching:
        return commands.judge_watch(work, result, PROG)
    return 0 if result.count else 1


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


def _open_json(name: str):
    """Opened before the load, so that a wrong name does not cost a run."""
    if not name:
        return None
    if name == "-":
        return os.fdopen(os.dup(1), "w")
    try:
        return open(name, "w", encoding="utf-8")
    except OSError as e:
        raise UsageError(f"--report-json {name}: {e.strerror}") from None


def _open_bits(name: str):
    if not name:
        return None
    try:
        return open(name, "wb")
    except OSError as e:
        raise UsageError(f"--acknowledged {name}: {e.strerror}") from None


def _style(args: argparse.Namespace) -> dict:
    return {"precise": args.precise, "sample": args.sample}


def _print_report(args: argparse.Namespace, work: Workload, result: runner.Result, report, out) -> None:
    style = _style(args)
    if work.watching:
        commands.print_watch(work, result, report, style, out)
        return
    if len(work.labels) == 1:
        print(report.text_report(result.kinds[0], result.seconds, result.errors, **style), file=out)
        return
    for label, kind in zip(work.labels, result.kinds, strict=False):
        print(f"Total {label} Ops: {kind.count}\nDetails:", end="", file=out)
        last = label == work.labels[-1]
        print(report.text_report(kind, result.seconds, result.errors if last else {}, **style), file=out)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (UsageError, EndpointError, WorkloadError, SecurityError) as e:
        print(f"{PROG}: {e}", file=sys.stderr)
        return 2
    except RunError as e:
        print(f"{PROG}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    sys.exit(main())
