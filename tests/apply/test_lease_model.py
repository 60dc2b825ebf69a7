"""Random histories of leases against the model: entries, calls, time, leaders and restarts in any order."""

import os
import random

import pytest

from etcdfast.api.pb import rpc_pb2
from tests.apply.leasemodel import LeaseModel
from tests.apply.leaserig import NOT_PRIMARY, SECOND, WAITS, LeaseRig

SEED_VARIABLE = "ETCDFAST_TEST_SEED"
KEYS = [bytes([97 + i // 6, 97 + i % 6]) for i in range(36)]
IDS = [*range(1, 40), -1, -(2**63), 2**63 - 1]
TTLS = [0, 1, 2, 3, 5, 8, 30, 299, 301, 400, 1000, 100_000]
STEPS = 4000

R = rpc_pb2


class History:
    def __init__(self, rng, path):
        self.rng = rng
        self.rig = LeaseRig(path)
        self.model = LeaseModel(self.rig.now)
        self.waiting = set()
        self.offers = {}  # proposals of revokes under way -> when made
        self.resets = {}

    def step(self):
        actions = (
            (14, self.grant),
            (8, self.revoke),
            (30, self.write),
            (12, self.keep_alive),
            (3, self.strange_checkpoint),
            (12, self.pass_time),
            (8, self.expire),
            (6, self.checkpoint),
            (2, self.change_leader),
            (2, self.end_turn),
            (0.4, self.restart),
        )
        weights, names = zip(*actions, strict=True)
        self.rng.choices(names, weights)[0]()
        self.look()

    def id(self):
        alive = list(self.model.leases)
        return self.rng.choice(alive) if alive and self.rng.random() < 0.7 else self.rng.choice(IDS)

    def grant(self):
        lease, ttl = self.id(), self.rng.choice(TTLS)
        answer = self.rig.grant(lease, ttl)
        expected = self.model.grant(lease, ttl)
        assert (answer if isinstance(answer, str) else answer.TTL) == expected

    def revoke(self, lease=None):
        lease = lease or self.id()
        answer = self.rig.revoke(lease)
        expected = self.model.revoke(lease)
        assert (answer if isinstance(answer, str) else answer.header.revision) == expected
        self.settle({lease} & self.waiting)

    def settle(self, expected):
        assert set(self.rig.ops.take_settled()) == expected
        self.waiting -= expected

    def write(self):
        """A put, a delete or a transaction of both; with, without and keeping leases."""
        rng = self.rng
        keys = rng.sample(KEYS, rng.choice((0, 1, 1, 1, 2, 5)))
        puts = {key: None if rng.random() < 0.1 else self.id() if rng.random() < 0.7 else 0 for key in keys}
        free = [key for key in KEYS if key not in puts]
        deletes = [(rng.choice(free), b"") for _ in range(rng.choice((0, 0, 1, 2)))]
        if not puts and rng.random() < 0.5:
            deletes.append(tuple(sorted(rng.sample(KEYS, 2))))
        requests = [R.DeleteRangeRequest(key=start, range_end=end) for start, end in deletes]
        requests += [
            R.PutRequest(key=key, value=b"v", lease=lease or 0, ignore_lease=lease is None)
            for key, lease in puts.items()
        ]
        if len(requests) == 1 and rng.random() < 0.7:
            answer = self.rig.apply(requests[0])
        else:
            txn = R.TxnRequest()
            for request in requests:
                name = "request_put" if isinstance(request, R.PutRequest) else "request_delete_range"
                txn.success.add(**{name: request})
            answer = self.rig.apply(txn)
        expected = self.model.write(puts, deletes)
        if isinstance(expected, str) and isinstance(answer, str):
            # With two reasons to refuse, which is told first is no question of leases.
            assert {answer, expected} <= {"KEY_NOT_FOUND", "LEASE_NOT_FOUND"}
        else:
            assert answer.header.revision == expected

    def keep_alive(self):
        lease = self.id()
        expected = self.model.keep_alive(lease)
        answer = self.rig.keep_alive(lease)
        assert answer == {"waits": WAITS, "not primary": NOT_PRIMARY}.get(expected, expected)
        if expected == "waits":
            self.waiting.add(lease)

    def strange_checkpoint(self):
        """As another leader's, or an old one's, may come out of the log."""
        lease = self.id()
        self.apply_checkpoint({lease: self.rng.choice((0, 1, 7, 310, 5000))})

    def apply_checkpoint(self, remaining):
        request = R.LeaseCheckpointRequest()
        for lease, seconds in remaining.items():
            request.checkpoints.add(ID=lease, remaining_TTL=seconds)
        before = {lease for lease in self.waiting if self.reset_under_way(lease)}
        self.rig.apply(request)
        self.model.checkpoint(remaining)
        self.settle({lease for lease in before if not self.reset_under_way(lease)})

    def reset_under_way(self, lease):
        return lease in self.model.leases and self.model.leases[lease].resetting

    def pass_time(self):
        seconds = self.rng.choice((0.001, 0.3, 1, 1, 2.5, 10, 100, 300))
        self.rig.advance(seconds)
        self.model.now = self.rig.now

    def expire(self):
        """Take what is due; carry out some of it, and lose the rest on its way."""
        expected = self.model.due()
        again = {lease for lease, made in self.offers.items() if self.rig.now - made >= 3 * SECOND}
        offered = []
        while self.rig.ops.next_due <= self.rig.now and (ids := self.rig.ops.take_due(self.rig.now, 7)):
            offered += ids
        again &= set(self.model.leases)
        assert sorted(offered) == sorted([*expected, *(lease for lease in again if lease in self.model.leases)])
        for lease in offered:
            self.offers[lease] = self.rig.now
        for lease in offered:
            if self.rng.random() < 0.7:
                self.revoke(lease)
                del self.offers[lease]

    def checkpoint(self):
        request = self.rig.ops.take_checkpoints(self.rig.now)
        if request is None:
            return
        found = R.LeaseCheckpointRequest.FromString(request).checkpoints
        for lease in found:
            assert self.model.right_checkpoint(lease.ID, lease.remaining_TTL), lease
        if self.rng.random() < 0.8:
            self.apply_checkpoint({lease.ID: lease.remaining_TTL for lease in found})

    def change_leader(self):
        if self.model.primary and self.rng.random() < 0.4:
            self.rig.ops.follow()
            self.model.follow()
        else:
            self.rig.ops.lead(self.rig.now)
            self.model.lead()
        self.settle(set(self.waiting))
        self.offers = {}

    def end_turn(self):
        self.rig.write()

    def restart(self):
        self.rig.restart()
        self.model.follow()
        self.waiting = set()
        self.offers = {}

    def look(self):
        rig, model = self.rig, self.model
        self.offers = {lease: made for lease, made in self.offers.items() if lease in model.leases}
        assert rig.mvcc.current == model.revision
        assert rig.table.count == len(model.leases)
        assert rig.table.attached == sum(1 for lease in model.keys.values() if lease)
        lease = self.id()
        if model.primary:
            answer = rig.time_to_live(lease)
            left, granted, keys = model.time_to_live(lease)
            assert (answer.TTL, answer.grantedTTL, sorted(answer.keys)) == (left, granted, keys)

    def look_at_all(self):
        rig, model = self.rig, self.model
        assert rig.listed() == model.listed()
        assert rig.stored() == model.stored()
        stored = sum(len(key) - 1 + len(value) for key, value in model.stored())
        rig.write()
        revisions = sum(
            len(key) - 1 + (0 if len(key) == 19 else len(value))
            for key, value in rig.store.records()[0]
            if key[9:10] == b"_"
        )
        assert rig.mvcc.in_use_bytes == stored + revisions
        for key in KEYS:
            assert (rig.mvcc.get(key) is None) == (key not in model.keys)


def seeds():
    return [int(os.environ[SEED_VARIABLE])] if SEED_VARIABLE in os.environ else [random.randrange(2**31), 1]


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: "seed")
def test_random_histories(tmp_path, seed):
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    history = History(random.Random(seed), tmp_path / "store")
    history.rig.ops.lead(history.rig.now)
    history.model.lead()
    for step in range(STEPS):
        history.step()
        if step % 100 == 99:
            history.look_at_all()
    history.restart()
    history.look_at_all()
    history.rig.close()
