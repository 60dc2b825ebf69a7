"""The services' view of the real key space, against the model's."""

import random
from types import SimpleNamespace

import pytest

from etcdfast.api.pb import rpc_pb2
from etcdfast.apply.space import Space
from tests.apply.model import Model
from tests.apply.rig import CLUSTER, MEMBER, TERM, Rig
from tests.apply.world import Space as ModelSpace

PREFIXES = [b"/", b"a/", b"a/b/", b"b/", b"\xff/", b"zz/"]


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def space_of(rig):
    return Space(SimpleNamespace(cluster_id=CLUSTER, member_id=MEMBER, raft_term=TERM), rig.process.mvcc)


def test_at_random(rig):
    seed = 5
    rng = random.Random(seed)
    print(f"seed {seed}")
    model, space = Model(), space_of(rig)
    theirs = ModelSpace(model)
    names = [prefix + b"%x" % i for prefix in PREFIXES for i in range(300)] + [b"a", b"a0", b"a.", b"\xff", b"\xff0"]
    for round_number in range(60):
        for _ in range(20):
            roll = rng.random()
            key = rng.choice(names)
            if roll < 0.7:
                method, request = "Put", rpc_pb2.PutRequest(key=key, value=b"%d" % rng.randint(0, 99))
            elif roll < 0.85:
                method, request = "DeleteRange", rpc_pb2.DeleteRangeRequest(key=key)
            else:
                # Several keys created in one revision: the lowest of them counts.
                method, request = "Txn", rpc_pb2.TxnRequest()
                for put in rng.sample(names, 5):
                    request.success.add().request_put.key = put
            rig.propose(method, request, asked=False)
            getattr(model, {"Put": "put", "DeleteRange": "delete_range", "Txn": "txn"}[method])(request)
        rig.settle()
        if round_number in (20, 40):
            compaction = rpc_pb2.CompactionRequest(revision=model.current - 30)
            rig.propose("Compact", compaction, asked=False)
            model.compact(compaction)
            rig.settle()
        assert space.current_revision == model.current
        for prefix in PREFIXES:
            assert space.first_created(prefix) == theirs.first_created(prefix)
            for create_max in (0, -1, 1, rng.randint(1, model.current), model.current, 1 << 62):
                assert space.last_created(prefix, create_max) == theirs.last_created(prefix, create_max)
        for key in rng.sample(names, 20):
            for revision in (0, model.current, rng.randint(1, model.current)):
                if revision == 0 or revision >= model.compacted:
                    assert space.get(key, revision) == theirs.get(key, revision)


def test_a_prefix_larger_than_a_batch(rig):
    space = space_of(rig)
    for i in range(1000):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"q/%04d" % ((i * 617) % 1000)), asked=False)
        if i % 250 == 249:
            rig.settle()
    rig.settle()
    assert b"q/0000" in space.first_created(b"q/")
    for create_max in (2, 3, 500, 1001):
        assert space.last_created(b"q/", create_max) == b"q/%04d" % (((create_max - 2) * 617) % 1000)


@pytest.mark.parametrize("prefix", [b"", b"a", b"a/b"])
def test_what_is_no_prefix(rig, prefix):
    space = space_of(rig)
    with pytest.raises(ValueError, match="slash"):
        space.first_created(prefix)
    with pytest.raises(ValueError, match="slash"):
        space.last_created(prefix, 9)
