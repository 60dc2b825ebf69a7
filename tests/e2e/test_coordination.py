"""etcdctl's watch, lease, lock, elect and make-mirror print and return the same against both servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Client, Server, pb, reference_server, started_pair, wait_until

from .session import Session, unrepeated, without_pokes

Scenario = Callable[[Session], None]
Pair = tuple[tuple[Server, Client], tuple[Server, Client]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Pair]:
    with started_pair() as (left, right), left.client() as one, right.client() as other:
        yield (left, one), (right, other)


@pytest.fixture
def pair(sides: Pair) -> Iterator[tuple[Session, Session]]:
    """Both servers without keys and leases, and at the same revision."""
    clients = [client for _, client in sides]
    for client in clients:
        for lease in client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases:
            client.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=lease.ID))
        client.put(b"clean", b"")
        client.delete(b"\0", b"\0")
    revisions = [client.get(b"clean").header.revision for client in clients]
    for client, revision in zip(clients, revisions):
        for _ in range(max(revisions) - revision):
            client.put(b"clean", b"")
        client.put(b"clean", b"")
        client.delete(b"clean")
    sessions = Session(*sides[0]), Session(*sides[1])
    yield sessions
    for session in sessions:
        session.close()


SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


@pytest.mark.parametrize("play", SCENARIOS, ids=lambda play: play.__name__)
def test_scenario(pair: tuple[Session, Session], play: Scenario) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(play, session) for session in pair]:
            done.result()
    left, right = (session.transcript for session in pair)
    wrong = [
        f"etcdctl {one[0]}\netcd: {one[1]}\nother: {other[1]}" if one[0] == other[0] else f"{one[0]} / {other[0]}"
        for one, other in zip(left, right)
        if one != other
    ]
    assert len(left) == len(right) > 0
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(left)} commands differ\n" + "\n\n".join(wrong), pytrace=False)


def _revision(session: Session) -> int:
    return session.client.get(b"\0").header.revision


# -- watch ---------------------------------------------------------------------------------------


@scenario
def watch_of_a_key(session: Session) -> None:
    watch = session.start("watch", "a")
    session.watching(watch, "a")
    session.run("put", "a", "1")
    session.run("put", "b", "not watched")
    session.run("del", "a")
    session.run("put", "a", "2")
    watch.shows(b"PUT\na\n2\n")
    session.interrupt(watch, without_pokes)


@scenario
def watch_of_a_prefix_and_ranges(session: Session) -> None:
    forms = (["a", "--prefix"], ["a", "c"], ["b", "--prefix", "--prev-kv"], ["", "--prefix"])
    watches = [session.start("watch", *form) for form in forms]
    for watch, key in zip(watches, ("aa", "aa", "bb", "aa")):
        session.watching(watch, key)
    for key in ("a", "a\xff", "b", "bb", "c", "d"):
        session.run("put", key, "1")
    session.run("del", "a", "c")
    session.run("put", "ab", "last")
    session.run("put", "bz", "last")
    for watch in watches:
        watch.shows(b"last")
    for watch in watches:
        watch.interrupt()
    # The pokes of one watch reach the others any number of times: only what follows is compared.
    for watch in watches:
        printed = watch.stdout
        session.compare(" ".join(watch.arguments), printed[printed.rindex(b"poke\n") + 5 :])


def _history(session: Session) -> int:
    """Some events of every kind; the revision before them."""
    before = _revision(session)
    session.run("put", "a", "1")
    session.run("put", "ab", "")
    session.run("put", "a", "2\nlines")
    session.run("del", "a")
    session.run("txn", stdin=b"\nput a 3\nput ac x\ndel ab\n\nput never 1\n\n")
    session.run("put", "b", "out of reach")
    session.run("del", "a", "--prefix")
    session.run("put", "a", "end")
    return before


@scenario
def watch_from_a_revision(session: Session) -> None:
    first = _history(session) + 1
    for form in (
        ["a"],
        ["a", "b", "--prev-kv"],
        ["a", "--prefix", "--prev-kv", "-w", "json"],
        ["a", "--prefix", "--prev-kv", "-w", "fields"],
        ["a", "--prefix", "--hex"],
    ):
        watch = session.start("watch", *form, f"--rev={first}")
        text = {"json": b"ZW5k", "fields": b'"Value" : "end"'}.get(form[-1], b"end")
        watch.shows(rb"\x65\x6e\x64" if "--hex" in form else text)
        session.interrupt(watch)


@scenario
def watch_from_the_middle_and_from_the_future(session: Session) -> None:
    first = _history(session) + 1
    middle = session.start("watch", "a", "--prefix", f"--rev={first + 3}")
    middle.shows(b"end")
    future = session.start("watch", "a", "--prefix", f"--rev={_revision(session) + 3}")
    # Whether the watch is there before these puts or after them, it begins with the third.
    session.run("put", "a1", "early")
    session.run("put", "a2", "early")
    session.run("put", "a3", "in time")
    for watch in (middle, future):
        watch.shows(b"in time")
    session.interrupt(middle)
    session.interrupt(future)


@scenario
def watch_with_a_command(session: Session) -> None:
    first = _history(session) + 1
    command = ("--", "sh", "-c", "env | grep ^ETCD_WATCH | sort; echo done")
    watch = session.start("watch", "a", f"--rev={first}", *command)
    watch.shows(b"done", 5)
    session.interrupt(watch)
    watch = session.start("watch", "a", "--prefix", f"--rev={first}", "--", "false")
    session.finish(watch)


@scenario
def watch_interactive(session: Session) -> None:
    watch = session.start("watch", "-i")
    watch.type("watch a")
    watch.type("progress")
    watch.shows(b"progress notify:", 1)
    session.run("put", "a", "1")
    watch.shows(b"PUT\na\n1\n")
    watch.type("watch --prefix b")
    watch.type("progress")
    watch.shows(b"progress notify:", 3)  # each watch of the stream is told
    session.run("put", "bb", "2")
    watch.shows(b"PUT\nbb\n2\n")
    watch.type("nonsense")
    watch.shows(b"Invalid command", where="stderr")
    watch.type("watch c -- echo told")
    watch.type("progress")
    watch.shows(b"progress notify:", 6)
    session.run("del", "c")
    session.run("put", "c", "3")
    watch.shows(b"told")
    session.run("put", "a", "4")
    watch.shows(b"PUT\na\n4\n")
    watch.no_more_input()
    session.finish(watch)


@scenario
def watch_interactive_from_a_revision(session: Session) -> None:
    first = _history(session) + 1
    watch = session.start("watch", "-i")
    watch.type(f"watch a --prefix --prev-kv --rev={first}")
    watch.shows(b"end")
    watch.type("progress")
    watch.shows(b"progress notify:")
    session.interrupt(watch)


@scenario
def watch_of_a_compacted_revision(session: Session) -> None:
    first = _history(session) + 1
    # Not at a revision that deletes: newer releases keep its tombstone, and so its event, for now (formats.md 9.4).
    session.run("compaction", str(first + 5))
    result = session.run("watch", "a", f"--rev={first}")
    assert result.code == 5
    session.run("watch", "a", "--prefix", f"--rev={first + 4}", "-w", "json")
    watch = session.start("watch", "a", "--prefix", f"--rev={first + 5}")
    watch.shows(b"end")
    session.interrupt(watch)
    watch = session.start("watch", "-i")
    watch.type(f"watch a --rev={first}")
    watch.shows(b"watch was canceled", where="stderr")
    watch.no_more_input()
    session.finish(watch)


@scenario
def watch_with_wrong_arguments(session: Session) -> None:
    session.run("watch")
    session.run("watch", "a", "b", "--prefix")
    session.run("watch", "a", "--rev=x")
    session.run("watch", "b", "a")  # an empty range: the server cancels it
    session.run("watch", "-i")


# -- lease ---------------------------------------------------------------------------------------


@scenario
def lease_commands(session: Session) -> None:
    session.run("lease", "list")
    one = session.lease(1000)
    session.run("lease", "timetolive", one)
    session.run("put", "a", "1", f"--lease={one}")
    session.run("put", "b", "2", f"--lease={one}")
    session.run("put", "b", "2", "--ignore-lease")
    session.run("put", "a", "none")
    session.run("lease", "timetolive", one, "--keys")
    session.run("lease", "timetolive", one, "--keys", "-w", "json")
    session.run("lease", "keep-alive", one, "--once")
    session.run("lease", "keep-alive", one, "--once", "-w", "json")
    session.run("get", "b", "-w", "json")
    session.run("txn", stdin=f'lease("b") = "{one}"\n\nput c 3 --lease={one}\n\nput d 4\n\n'.encode())
    session.run("lease", "timetolive", one, "--keys", "-w", "fields")
    session.run("lease", "revoke", one)
    session.run("get", "", "--prefix", "-w", "json")
    session.run("lease", "revoke", one)
    session.run("lease", "timetolive", one)
    session.run("lease", "timetolive", one, "-w", "json")
    session.run("lease", "keep-alive", one, "--once")
    session.run("lease", "keep-alive", one)
    session.run("put", "a", "1", f"--lease={one}")
    session.run("lease", "list")


@scenario
def lease_list_goes_by_expiry(session: Session) -> None:
    ids = [session.lease(ttl) for ttl in (500, 100, 900)]
    session.run("lease", "list")
    session.run("lease", "list", "-w", "json")
    session.run("lease", "revoke", ids[0], "-w", "json")
    session.run("lease", "list", "-w", "fields")


@scenario
def lease_grants(session: Session) -> None:
    for ttl in ("0", "60", "9000000000", "9000000001", "x"):
        session.run("lease", "grant", ttl)
    session.run("lease", "grant", "--", "-1")
    session.run("lease", "grant", "100", "-w", "json")
    session.run("lease", "grant", "100", "-w", "fields")


@scenario
def lease_wrong_arguments(session: Session) -> None:
    session.run("lease", "grant")
    for command in ("revoke", "timetolive", "keep-alive"):
        session.run("lease", command, "nothex")
    session.run("lease", "timetolive", "7fffffffffffffff", "-w", "json")
    session.run("lease", "revoke", "7fffffffffffffff")
    session.run("lease", "revoke", "0")
    session.run("lease", "timetolive", "0")


@scenario
def lease_kept_and_lease_left(session: Session) -> None:
    """One lease is renewed until it is revoked; meanwhile another runs out."""
    # Long enough for an etcdctl to start on a busy machine.
    lease = session.lease(6)
    session.run("put", "kept", "1", f"--lease={lease}")
    keeper = session.start("lease", "keep-alive", lease)
    left = session.lease(6)
    session.run("put", "gone", "1", f"--lease={left}")
    watch = session.start("watch", "gone", f"--rev={_revision(session)}", "--prev-kv")
    watch.shows(b"DELETE")
    session.interrupt(watch)
    session.run("lease", "timetolive", left, "--keys")
    session.run("get", "gone", "-w", "json")
    keeper.shows(b"keepalived with TTL(6)", 4)  # one every third of the TTL: kept for longer than it
    session.run("get", "kept")
    session.run("lease", "revoke", lease)
    keeper.shows(b"expired or revoked")
    session.finish(keeper, unrepeated)
    session.run("get", "kept")


# -- lock ----------------------------------------------------------------------------------------


@scenario
def lock_with_two_contenders(session: Session) -> None:
    first = session.start("lock", "mutex")
    first.shows(b"mutex/")
    second = session.start("lock", "mutex", "--ttl=20")
    wait_until(lambda: session.client.get(b"mutex/", b"mutex0").count == 2, "the second contender in the queue")
    assert second.stdout == b""
    session.interrupt(first)
    second.shows(b"mutex/")
    session.run("get", "mutex", "--prefix", "--count-only", "-w", "fields")
    session.interrupt(second)
    session.run("get", "mutex", "--prefix")


@scenario
def lock_given_up_while_waiting(session: Session) -> None:
    first = session.start("lock", "mutex")
    first.shows(b"mutex/")
    second = session.start("lock", "mutex")
    wait_until(lambda: session.client.get(b"mutex/", b"mutex0").count == 2, "the second contender in the queue")
    session.interrupt(second)
    wait_until(lambda: session.client.get(b"mutex/", b"mutex0").count == 1, "the second contender to leave")
    session.interrupt(first)
    session.run("get", "mutex", "--prefix")


@scenario
def lock_around_a_command(session: Session) -> None:
    session.run("lock", "mutex", "echo", "held")
    session.run("lock", "mutex", "--", "sh", "-c", "echo $ETCD_LOCK_KEY $ETCD_LOCK_REV; exit 7")
    session.run("lock", "mutex", "--", "/no/such/command")
    session.run("lock")
    session.run("get", "mutex", "--prefix")


@scenario
def lock_queues_with_the_lock_service(session: Session) -> None:
    """etcdctl brings its own queueing (client/v3/concurrency): it and the service take turns."""
    assert session.client.call("LeaseGrant", pb.LeaseGrantRequest(ID=5, TTL=1000)).ok
    first = session.start("lock", "mutex")
    first.shows(b"mutex/")
    service = session.client.start("Lock", pb.LockRequest(name=b"mutex", lease=5))
    wait_until(lambda: service.done or session.client.get(b"mutex/5").count == 1, "the service in the queue")
    assert not service.done, service.reply()
    last = session.start("lock", "mutex", "--", "sh", "-c", "echo last")
    wait_until(lambda: session.client.get(b"mutex/", b"mutex0").count == 3, "the last in the queue")
    assert not service.done, service.reply()
    session.interrupt(first)
    assert service.reply().message.key == b"mutex/5"
    assert last.stdout == b""
    assert session.client.call("Unlock", pb.UnlockRequest(key=b"mutex/5")).ok
    session.finish(last)


@scenario
def lock_whose_lease_is_revoked(session: Session) -> None:
    first = session.start("lock", "mutex", "--ttl=6")
    first.shows(b"mutex/")
    lease = session.client.get(b"mutex/", b"mutex0").kvs[0].lease
    session.run("lease", "revoke", f"{lease:x}")
    session.finish(first)


# -- elect ---------------------------------------------------------------------------------------


@scenario
def elect_campaigns_and_listeners(session: Session) -> None:
    early = session.start("elect", "-l", "race")
    one = session.start("elect", "race", "one")
    one.shows(b"race/")
    early.shows(b"one")
    two = session.start("elect", "race", "two")
    wait_until(lambda: session.client.get(b"race/", b"race0").count == 2, "the second candidate in the queue")
    late = session.start("elect", "-l", "race")
    late.shows(b"one")
    kv = session.client.get(b"race/", b"race0", sort_target=2, sort_order=1).kvs[0]
    leader = pb.LeaderKey(name=b"race", key=kv.key, rev=kv.create_revision, lease=kv.lease)
    assert session.client.call("Proclaim", pb.ProclaimRequest(leader=leader, value=b"uno")).ok
    for listener in (early, late):
        listener.shows(b"uno")
    assert two.stdout == b""
    session.interrupt(one)
    two.shows(b"race/")
    for listener in (early, late):
        listener.shows(b"two")
    session.interrupt(two)
    session.interrupt(early)
    session.interrupt(late)
    session.run("get", "race", "--prefix")


@scenario
def elect_meets_the_election_service(session: Session) -> None:
    """etcdctl's listener and candidates and those of the service are of one election."""
    assert session.client.call("LeaseGrant", pb.LeaseGrantRequest(ID=5, TTL=1000)).ok
    won = session.client.call("Campaign", pb.CampaignRequest(name=b"race", lease=5, value=b"service"))
    two = session.start("elect", "race", "ctl")
    wait_until(lambda: session.client.get(b"race/", b"race0").count == 2, "etcdctl in the queue")
    with session.client.observe(pb.LeaderRequest(name=b"race")) as observer:
        assert observer.receive().kv.value == b"service"
        assert session.client.call("Resign", pb.ResignRequest(leader=won.message.leader)).ok
        two.shows(b"ctl")
        assert observer.receive().kv.value == b"ctl"
    session.interrupt(two)


@scenario
def elect_wrong_arguments(session: Session) -> None:
    session.run("elect")
    session.run("elect", "race")
    session.run("elect", "-l", "race", "value")
    session.run("elect", "a", "b", "c")


# -- make-mirror ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def destination() -> Iterator[Server]:
    with reference_server() as server:
        yield server


def _contents(client: Client, prefix: bytes) -> dict[bytes, bytes]:
    return {kv.key[len(prefix) :]: kv.value for kv in client.get(prefix, prefix[:-1] + b"0").kvs}


def test_make_mirror_into_a_real_etcd_and_back(pair: tuple[Session, Session], destination: Server) -> None:
    """What a member holds and what then happens to it arrives in an etcd, and from there in the member again."""

    def play(session: Session, name: bytes) -> None:
        for number in range(300):  # more than one page of what the mirror reads at first
            session.client.put(b"src/%03d" % number, b"v" * (number % 50))
        with destination.client() as there:
            out = session.start("make-mirror", "--prefix=src/", f"--dest-prefix={name.decode()}/", destination.endpoint)
            home = [session.server.endpoint]
            back = Session(destination, there)
            running = back.start("make-mirror", f"--prefix={name.decode()}/", "--dest-prefix=back/", *home)
            try:
                wait_until(lambda: _contents(session.client, b"back/").get(b"299") is not None, "the base to come back")
                for number in range(100):
                    session.client.put(b"src/%03d" % number, b"later")
                session.client.delete(b"src/2", b"src/3")
                txn = pb.TxnRequest()
                for number in range(50):
                    txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"src/t%02d" % number, value=b"txn"))
                assert session.client.call("Txn", txn).ok
                session.client.put(b"src/last", b"1")
                wait_until(lambda: b"last" in _contents(session.client, b"back/"), "the last put to come back")
                source = _contents(session.client, b"src/")
                assert len(source) == 251
                assert _contents(there, name + b"/") == source
                assert _contents(session.client, b"back/") == source
                session.interrupt(out)
            finally:
                running.kill()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(play, session, name) for session, name in zip(pair, (b"left", b"right"))]:
            done.result()
    assert [result for _, result in pair[0].transcript] == [result for _, result in pair[1].transcript]


@scenario
def make_mirror_wrong_arguments(session: Session) -> None:
    session.run("make-mirror")
    session.run("make-mirror", "--dest-prefix=a", "--no-dest-prefix", session.server.endpoint)
