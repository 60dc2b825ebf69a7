"""Side by side: real etcd 3.5.1 and etcdfast under the same load, in alternating pairs.

    python bench/compare.py                         everything, five pairs
    python bench/compare.py --scenarios put,range-l --pairs 7 --seconds 10
    python bench/compare.py --only etcdfast --scenarios put --pairs 1

Every run starts a fresh member on a fresh data directory on the same disk, with fsync on. Pairs are
ordered A B, B A, A B, ... so that a drift of the machine falls on both alike. Ratios are taken
within a pair; the table shows their median and the range of the pairs. Every call appends one line
to bench/history.ndjson.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import machine
from cluster import Cluster
from members import REPOSITORY, MemberError
from scenario import Bar, Scenario, Size
from scenarios import BY_NAME, SCENARIOS

SIDES = ("etcd", "etcdfast")
HISTORY = REPOSITORY / "bench" / "history.ndjson"
# runs[scenario name][side] = figures of each pair, None where the run failed
Runs = dict[str, dict[str, list[dict | None]]]


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    root = Path(args.data_root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        print(f"compare: --data-root {root}: {e.strerror}", file=sys.stderr)
        return 2
    facts = machine.facts(root)
    if facts["filesystem"] in ("tmpfs", "ramfs"):
        print(
            f"compare: {root} is a {facts['filesystem']}: fsync costs nothing there, use --data-root", file=sys.stderr
        )
    commit = facts["commit"] + ("+changes" if facts["changed"] else "")
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['filesystem']}, "
        f"fdatasync p50 {facts['fdatasync_us_p50']} us (p99 {facts['fdatasync_us_p99']} us), commit {commit}"
    )
    runs, failures = _run_all(args, root)
    for name, sides in runs.items():
        print(table(BY_NAME[name], sides, runs, "etcd again" if args.self_test else "etcdfast"))
    for failure in failures:
        print(f"compare: {failure}", file=sys.stderr)
    if not args.no_history:
        line = facts | {"pairs": args.pairs, "seconds": args.size.seconds, "total": args.size.total, "runs": runs}
        with HISTORY.open("a") as history:
            history.write(json.dumps(line | {"medians": _medians(runs)}) + "\n")
    return 1 if failures else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = ",".join(scenario.name for scenario in SCENARIOS)
    parser.add_argument("--scenarios", default=names, metavar="LIST", help=f"any of {names}")
    parser.add_argument("--pairs", type=_positive, default=5, metavar="N", help="pairs of runs (5)")
    parser.add_argument(
        "--heavy-pairs", type=_positive, default=2, metavar="N", help="pairs of the scenarios that take longest (2)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="length of a measured load (5)")
    parser.add_argument(
        "--total", type=int, default=0, metavar="N", help="requests of a measured load, in place of --seconds"
    )
    parser.add_argument("--only", choices=SIDES, help="run this side alone")
    parser.add_argument(
        "--data-root",
        default=str(REPOSITORY / "build" / "bench-data"),
        metavar="DIR",
        help="where data directories are made",
    )
    parser.add_argument("--keep-data", action="store_true", help="leave data directories and logs behind")
    parser.add_argument("--no-history", action="store_true", help="add no line to bench/history.ndjson")
    parser.add_argument("--self-test", action="store_true", help="a tiny run with real etcd on both sides; no history")
    args = parser.parse_args(argv)
    args.names = [name.strip() for name in args.scenarios.split(",") if name.strip()]
    unknown = [name for name in args.names if name not in BY_NAME]
    if unknown or not args.names:
        parser.error(f"--scenarios: unknown {', '.join(unknown) or 'nothing'}; there are {names}")
    if args.seconds <= 0 or args.total < 0:
        parser.error("--seconds must be above 0, --total 0 or more")
    args.size = Size(seconds=args.seconds, total=args.total)
    if args.self_test:
        args.no_history, args.pairs, args.heavy_pairs = True, min(args.pairs, 2), 1
        args.size = Size(
            warm_seconds=0,
            total=args.total or 200,
            keys=300,
            stream_keys=300,
            preload=50,
            clients_max=20,
            streams=5,
            watchers_each=4,
            many_watchers=40,
            pending_events=2000,
            leases=100,
            expiring=50,
            missed_puts=500,
            settle_seconds=0,
            ttl_spare_seconds=2,
            stream=False,
        )
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


def _run_all(args: argparse.Namespace, root: Path) -> tuple[Runs, list[str]]:
    sides = (args.only,) if args.only else SIDES
    plan = []
    for name in args.names:
        for pair in range(args.heavy_pairs if BY_NAME[name].heavy else args.pairs):
            order = sides if pair % 2 == 0 else tuple(reversed(sides))
            plan += [(name, pair, side) for side in order]
    runs: Runs = {name: {side: [] for side in sides} for name in args.names}
    failures = []
    say = _Progress(len(plan))
    for name, pair, side in plan:
        try:
            figures = _run_one(args, root, BY_NAME[name], side)
        except MemberError as e:
            failures.append(f"{name}, pair {pair + 1}, {side}: {e}")
            figures = None
        runs[name][side].append(figures)
        say(name, pair, side, figures)
    say.close()
    return runs, failures


def _run_one(args: argparse.Namespace, root: Path, scenario: Scenario, side: str) -> dict:
    kind = "etcd" if args.self_test else side
    directory = Path(tempfile.mkdtemp(prefix=f"{scenario.name}-{side}-", dir=root))
    member = (Cluster if scenario.cluster else scenario.member)(kind, directory)
    try:
        member.start()
        return scenario.run(member, args.size)
    finally:
        member.stop()
        if args.keep_data:
            print(f"kept {directory}", file=sys.stderr)
        else:
            member.remove_data()


class _Progress:
    """A bar on a terminal, a line per run elsewhere."""

    def __init__(self, total: int) -> None:
        self._bar = None
        self._done, self._total = 0, total
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="run", file=sys.stderr)

    def __call__(self, name: str, pair: int, side: str, figures: dict | None) -> None:
        self._done += 1
        shown = ""
        if figures:
            shown = " ".join(f"{key}={_short(figures[key])}" for key in BY_NAME[name].shown if key in figures)
        text = f"{name} pair {pair + 1} {side}: {shown or 'failed'}"
        if self._bar is None:
            print(f"[{self._done}/{self._total}] {text}", file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# ---- figures ------------------------------------------------------------------------------------


def _values(runs: list[dict | None], figure: str) -> list[float]:
    return [run[figure] for run in runs if run and figure in run]


def _ratios(sides: dict[str, list[dict | None]], figure: str) -> list[float]:
    """etcdfast over etcd, pair by pair."""
    pairs = zip(sides.get("etcd", []), sides.get("etcdfast", []), strict=False)
    return [b[figure] / a[figure] for a, b in pairs if a and b and a.get(figure) and figure in b]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{_short(statistics.median(values))} [{_short(min(values))}..{_short(max(values))}]"


def bar_value(bar: Bar, sides: dict[str, list[dict | None]], runs: Runs) -> float | None:
    """The median that the bar is held against, or None when there is nothing to judge."""
    own = _values(sides.get("etcdfast", []), bar.figure)
    if bar.ratio:
        ratios = _ratios(sides, bar.figure)
        return statistics.median(ratios) if ratios else None
    if not own:
        return None
    if bar.of_scenario:
        other = _values(runs.get(bar.of_scenario, {}).get("etcdfast", []), bar.figure)
        return statistics.median(own) / statistics.median(other) if other and statistics.median(other) else None
    return statistics.median(own)


def table(scenario: Scenario, sides: dict[str, list[dict | None]], runs: Runs, second: str = "etcdfast") -> str:
    rows = [("", "etcd 3.5.1", second, f"{second} / etcd")]
    for figure in scenario.shown:
        columns = [_spread(_values(sides.get(side, []), figure)) for side in SIDES]
        rows.append((figure, *columns, _spread(_ratios(sides, figure))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    out = [f"\n{scenario.name}: {scenario.what} (median [least..most] of {_pairs(sides)})"]
    out += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    for side in SIDES:
        errors = sum(_values(sides.get(side, []), "errors"))
        if errors:
            answered = sum(_values(sides[side], "requests"))
            out.append(f"  {side}: {errors:,.0f} requests failed beside {answered:,.0f} answered ones")
    for bar in scenario.bars:
        value = bar_value(bar, sides, runs)
        if value is None:
            out.append(f"  bar  {bar.describe()}: not measured")
            continue
        met = value >= bar.limit if bar.at_least else value <= bar.limit
        out.append(f"  bar  {bar.describe()}: {_short(value)} {'met' if met else 'MISSED'}")
    return "\n".join(out)


def _pairs(sides: dict[str, list[dict | None]]) -> str:
    count = max(len(runs) for runs in sides.values())
    return f"{count} pairs" if len(sides) == 2 else f"{count} runs"


def _medians(runs: Runs) -> dict:
    return {
        name: {
            side: {
                figure: statistics.median(_values(results, figure)) for figure in next((r for r in results if r), {})
            }
            for side, results in sides.items()
        }
        for name, sides in runs.items()
    }


if __name__ == "__main__":
    sys.exit(main())
