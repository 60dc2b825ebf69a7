"""The guarantees of watches over kill -9: what was seen was so, and those who resume miss nothing.

A history is recorded while writers and watchers are at work and the member dies. What really happened is
then read from the restarted store (checker.Checker), revision by revision, without any watch; against
that replay every watch of the round is held (differential/guarantees.py).
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from typing import Any

import pytest

from tests.differential.guarantees import Violation
from tests.harness import EtcdServer, Server, pb, target_server

from .checker import Broken, Checker
from .followers import Followers, ReplayModel
from .history import Operation
from .test_kill9 import ROUNDS_VARIABLE, SEED_VARIABLE
from .victims import choose
from .workload import Load

ROUNDS = 10  # `make soak` has many more
COMPACT_EVERY = 3
# The watchers are Python: at full speed their history grows to a million events, all checked one by one.
PAUSE_SECONDS = 0.01
# The name of 3.5; newer releases dropped the prefix, etcdfast knows both.
FLAGS = ["--experimental-watch-progress-notify-interval", "100ms"]


class History:
    """Rounds on one data directory: load and watches, death, restart, check."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.is_etcd = server.kind == "etcd"
        self.model = ReplayModel()
        self.checker = Checker(model=self.model)
        self.followers = Followers(server)
        self.killed: Counter[str] = Counter()

    def round(self, number: int) -> None:
        load = self._record(number)
        if self.is_etcd:
            self._settle_log(load)
        what, pids = choose(self.server, self.rng)
        self.killed[what] += 1
        self.server.kill9(pids)
        if self.server.wait_exit(10) == 0:
            raise Broken(f"{what} was killed, and the member ended with status 0")
        answered, unanswered = load.join()
        self.followers.collect()
        self.server.start()
        self._check(answered, unanswered)

    def round_without_death(self, number: int) -> None:
        answered, unanswered = self._record(number).join()
        self.followers.collect(ended=False)
        self._check(answered, unanswered)

    def _check(self, answered: list[Operation], unanswered: list[Operation]) -> None:
        with self.server.client() as client:
            self.checker.after_restart(client, answered, unanswered)
        self.followers.check(self.model.replay)

    def _record(self, number: int) -> Load:
        """Load and watches at work; the load goes on."""
        rng, followers = self.rng, self.followers
        mine = [key for key in self.model.live if not key.startswith(b"hot/")]
        followers.connect()
        load = Load(self.server, rng, number, mine, PAUSE_SECONDS)
        load.start()
        load.wait_answers(rng.randint(1, 40))
        followers.stop_reading()
        answers = rng.randint(40, 300)
        for part in range(1, 4):
            load.wait_answers(answers * part // 3)
            followers.churn(rng)
            if part == 2 and number % COMPACT_EVERY == COMPACT_EVERY - 1:
                self._compact()
        return load

    def finish(self) -> None:
        """A last time from where each one stopped, to the end: all of it."""
        self.followers.connect()
        self.followers.wait_for_all(self.model.replay)
        self.followers.collect(ended=False)
        self.followers.check(self.model.replay, through=self.model.current)

    def _settle_log(self, load: Load) -> None:
        """3.5.1 is not safe from its own death under load, and what is tested here is not that.

        Alone in its cluster it shows a write before it is in the log (issue 14370): an entry that writes
        nothing is in the log only after all before it. And it may store its place in the log ahead of the
        data (issue 13766): Hash makes it store both.
        """
        load.join()
        with self.server.client() as client:
            client.delete(b"nothing")
            client.call("Hash", pb.HashRequest()).message  # noqa: B018 - raises if refused

    def _compact(self) -> None:
        """Never above the last round's revision, so this round's writes can still be read one by one."""
        low = max(self.model.replay.compacted + 1, 2)
        if self.model.current <= low:
            return
        revision = self.rng.randint(low, self.model.current)
        self.model.replay.compacted = revision  # whether the answer comes or not
        with self.server.client(20) as client:
            request = pb.CompactionRequest(revision=revision, physical=self.rng.random() < 0.3)
            pending = client.start("Compact", request)
            if self.rng.random() < 0.7:
                pending.reply()


def test_watches_keep_their_guarantees_over_kill9() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    rounds = int(os.environ.get(ROUNDS_VARIABLE) or ROUNDS)
    print(f"seed {seed} ({SEED_VARIABLE}={seed} repeats the same load and kills)")
    server = target_server(flags=FLAGS)
    history = History(server, seed)
    number = -1
    try:
        server.start()
        for number in range(rounds):
            history.round(number)
        history.finish()
    except AssertionError as error:
        raise Broken(f"seed {seed}, round {number}: {error}\n{server.log_tail()}") from error
    finally:
        history.followers.abandon()
        server.close()
    followers = history.followers
    print(f"{followers.events} events, {followers.resumed} watches, killed {dict(history.killed)}")
    assert history.model.current > rounds * 20 and followers.events > history.model.current
    assert followers.resumed > rounds * len(followers.all)


class _Loses:
    """Takes the first event out of the n-th response that has several, once."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.lost = False
        self._lock = threading.Lock()  # every stream has a thread

    def __call__(self, response: Any) -> Any:
        with self._lock:
            if len(response.events) > 1 and not self.lost:
                self.left -= 1
                if self.left == 0:
                    self.lost = True
                    del response.events[0]
        return response


def test_a_lost_event_is_found() -> None:
    """Against real etcd: one event of thousands is lost on the way to a watcher, and the history says so."""
    with EtcdServer(flags=FLAGS) as server:
        history = History(server, 5)
        history.followers.falsify = loses = _Loses(20)
        with pytest.raises(Violation):
            for number in range(3):  # etcd lags by 100 ms at first: a round may be over by then
                history.round_without_death(number)
        assert loses.lost
        history.followers.abandon()
