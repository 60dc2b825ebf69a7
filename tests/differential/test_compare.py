"""The comparer and the list of known differences: right answers pass, wrong ones do not."""

from __future__ import annotations

import pytest

from tests.harness import Reply, pb

from .compare import compare_replies
from .known_differences import Exchange, unexplained
from .minimise import minimise


def _ok(method: str, message: object) -> Reply:
    return Reply(method, 0, "", message.SerializeToString())  # type: ignore[attr-defined]


def _kv(key: bytes, version: int = 1, value: bytes = b"", **more: int) -> pb.KeyValue:
    return pb.KeyValue(key=key, version=version, value=value, create_revision=2, mod_revision=3, **more)


def _range(*kvs: pb.KeyValue, more: bool = False, count: int | None = None) -> Reply:
    header = pb.ResponseHeader(cluster_id=1, member_id=2, revision=9, raft_term=2)
    count = len(kvs) if count is None else count
    return _ok("Range", pb.RangeResponse(header=header, kvs=kvs, more=more, count=count))


def _paths(method: str, request: object, left: Reply, right: Reply, contents=None) -> list[str]:
    return [difference.path for difference in compare_replies(method, request, left, right, contents)]


def test_equal_replies_have_no_difference() -> None:
    assert _paths("Range", pb.RangeRequest(key=b"a"), _range(_kv(b"a")), _range(_kv(b"a"))) == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda m: setattr(m.header, "revision", 10), "header.revision"),
        (lambda m: setattr(m.header, "raft_term", 3), "header.raft_term"),
        (lambda m: setattr(m.header, "member_id", 3), "header.member_id"),
        (lambda m: setattr(m, "count", 7), "count"),
        (lambda m: setattr(m, "more", True), "more"),
        (lambda m: setattr(m.kvs[1], "lease", 7), "kvs[1].lease"),
        (lambda m: setattr(m.kvs[0], "version", 7), "kvs[0].version"),
        (lambda m: setattr(m.kvs[0], "value", b"x"), "kvs[0].value"),
        (lambda m: m.kvs.pop(), "len(kvs)"),
        (lambda m: m.ClearField("header"), "header"),
    ],
)
def test_every_changed_field_is_seen(change, path: str) -> None:
    left = _range(_kv(b"a"), _kv(b"b"))
    message = left.message
    change(message)
    assert _paths("Range", pb.RangeRequest(key=b"a", range_end=b"c"), left, _ok("Range", message)) == [path]


def test_fields_outside_the_schema_are_seen() -> None:
    left = _ok("Put", pb.PutResponse())
    right = Reply("Put", 0, "", b"\x98\x06\x01")  # field 99
    assert _paths("Put", pb.PutRequest(key=b"a"), left, right) == ["(unknown fields)"]


def test_code_and_text_are_compared() -> None:
    left = Reply("Put", 3, "etcdserver: key is not provided", b"")
    assert _paths("Put", pb.PutRequest(), left, Reply("Put", 3, "key is not provided", b"")) == ["text"]
    assert _paths("Put", pb.PutRequest(), left, Reply("Put", 2, left.text, b"")) == ["code"]
    assert _paths("Put", pb.PutRequest(), left, _ok("Put", pb.PutResponse())) == ["code", "text"]


class TestUnstableSort:
    request = pb.RangeRequest(key=b"a", range_end=b"z", sort_order=1, sort_target=1)

    def test_order_within_equal_sort_keys_is_free(self) -> None:
        left = _range(_kv(b"a"), _kv(b"b"), _kv(b"c", 2))
        right = _range(_kv(b"b"), _kv(b"a"), _kv(b"c", 2))
        assert _paths("Range", self.request, left, right) == []

    def test_order_of_a_key_sort_is_not(self) -> None:
        request = pb.RangeRequest(key=b"a", range_end=b"z", sort_order=1)
        left, right = _range(_kv(b"a"), _kv(b"b")), _range(_kv(b"b"), _kv(b"a"))
        assert _paths("Range", request, left, right) == ["kvs[0].key", "kvs[1].key"]

    def test_order_between_sort_keys_is_not(self) -> None:
        left, right = _range(_kv(b"a"), _kv(b"b", 2)), _range(_kv(b"b", 2), _kv(b"a"))
        assert _paths("Range", self.request, left, right) == ["kvs (sort keys)"]

    def test_members_of_a_whole_group_are_not(self) -> None:
        left, right = _range(_kv(b"a"), _kv(b"b")), _range(_kv(b"a"), _kv(b"c"))
        assert _paths("Range", self.request, left, right) == ["kvs (group 1)"]

    def test_a_limit_may_leave_any_members_of_the_last_group(self) -> None:
        stored = {kv.key: kv for kv in (_kv(b"a"), _kv(b"b", 2), _kv(b"c", 2), _kv(b"d", 3))}
        left = _range(stored[b"a"], stored[b"b"], more=True, count=4)
        right = _range(stored[b"a"], stored[b"c"], more=True, count=4)
        lookup = lambda request, revision: stored  # noqa: E731
        assert _paths("Range", self.request, left, right, lookup) == []
        changed = _range(stored[b"a"], _kv(b"c", 2, b"other"), more=True, count=4)
        assert _paths("Range", self.request, left, changed, lookup) == ["kvs (group 2, cut)"]
        foreign = _range(stored[b"a"], stored[b"d"], more=True, count=4)
        assert _paths("Range", self.request, left, foreign, lookup) == ["kvs (sort keys)"]

    def test_a_cut_group_has_each_member_once(self) -> None:
        left = _range(_kv(b"a"), _kv(b"b"), more=True, count=3)
        right = _range(_kv(b"c"), _kv(b"c"), more=True, count=3)
        assert _paths("Range", self.request, left, right) == ["kvs (group 1, repeated)"]

    def test_keys_sorted_by_blanked_values_are_checked_against_the_store(self) -> None:
        request = pb.RangeRequest(key=b"a", range_end=b"z", sort_order=1, sort_target=4, keys_only=True)
        stored = {b"a": _kv(b"a", value=b"1"), b"b": _kv(b"b", value=b"2")}
        left, right = _range(_kv(b"a"), _kv(b"b")), _range(_kv(b"b"), _kv(b"a"))
        assert _paths("Range", request, left, right, lambda *_: stored) == ["kvs (sort keys)"]


def test_txn_responses_are_compared_by_their_operation() -> None:
    request = pb.TxnRequest()
    request.success.add().request_range.CopyFrom(pb.RangeRequest(key=b"a", range_end=b"z", sort_order=1, sort_target=1))
    request.success.add().request_txn.success.add().request_put.key = b"a"

    def response(*kvs: pb.KeyValue, revision: int = 5) -> Reply:
        message = pb.TxnResponse(succeeded=True)
        message.responses.add().response_range.kvs.extend(kvs)
        inner = message.responses.add().response_txn
        inner.succeeded = True
        inner.responses.add().response_put.header.revision = revision
        return _ok("Txn", message)

    left = response(_kv(b"a"), _kv(b"b"))
    assert _paths("Txn", request, left, response(_kv(b"b"), _kv(b"a"))) == []
    found = _paths("Txn", request, left, response(_kv(b"b"), _kv(b"a"), revision=6))
    assert len(found) == 1 and found[0].endswith("header.revision")


class TestKnownDifferences:
    @staticmethod
    def left_over(method: str, request: object, left: Reply, right: Reply, compacted: int = -1) -> list[str]:
        differences = compare_replies(method, request, left, right)
        exchange = Exchange(method, request, left, right, current=9, compacted=compacted)
        return [difference.path for difference in unexplained(exchange, differences)]

    invalid_sort = Reply("Range", 3, "etcdserver: invalid sort option", b"")

    def test_invalid_sort_is_known_only_for_an_invalid_sort(self) -> None:
        left = _range(_kv(b"a"))
        wrong = pb.RangeRequest(key=b"a", sort_order=7)
        assert self.left_over("Range", wrong, left, self.invalid_sort) == []
        assert self.left_over("Range", pb.RangeRequest(key=b"a", sort_order=2), left, self.invalid_sort)
        assert self.left_over("Range", wrong, left, Reply("Range", 3, "etcdserver: key not found", b""))

    def test_hash_revision_is_known_only_with_the_right_value(self) -> None:
        left = _ok("HashKV", pb.HashKVResponse(hash=7, compact_revision=2))
        right = _ok("HashKV", pb.HashKVResponse(hash=7, compact_revision=2, hash_revision=5))
        assert self.left_over("HashKV", pb.HashKVRequest(revision=5), left, right) == []
        assert self.left_over("HashKV", pb.HashKVRequest(revision=4), left, right) == ["hash_revision"]
        other = _ok("HashKV", pb.HashKVResponse(hash=8, compact_revision=2, hash_revision=5))
        assert self.left_over("HashKV", pb.HashKVRequest(revision=5), left, other) == ["hash"]

    def test_hash_at_the_compacted_revision_is_known_only_there(self) -> None:
        left = Reply("HashKV", 11, "etcdserver: mvcc: required revision has been compacted", b"")
        right = _ok("HashKV", pb.HashKVResponse(hash=7))
        assert self.left_over("HashKV", pb.HashKVRequest(revision=5), left, right, compacted=5) == []
        assert self.left_over("HashKV", pb.HashKVRequest(revision=4), left, right, compacted=5)

    def test_hash_of_a_reborn_key_is_known_only_when_it_is_alone(self) -> None:
        left, right = _ok("HashKV", pb.HashKVResponse(hash=7)), _ok("HashKV", pb.HashKVResponse(hash=8))
        request = pb.HashKVRequest(revision=8)
        differences = compare_replies("HashKV", request, left, right)

        def left_over(before: dict[bytes, int], after: dict[bytes, int], compacted: int = 5) -> bool:
            at = {7: before, 8: after}
            exchange = Exchange("HashKV", request, left, right, 9, compacted, at.__getitem__)
            return bool(unexplained(exchange, differences))

        assert not left_over({b"a": 3, b"b": 4}, {b"a": 8})
        assert left_over({b"a": 3, b"b": 4}, {b"a": 8, b"b": 4})
        assert left_over({b"b": 4}, {b"a": 8})
        assert left_over({b"a": 3}, {b"a": 3})
        assert left_over({b"a": 3}, {})
        assert left_over({b"a": 3}, {b"a": 8}, compacted=-1)


def test_minimise_finds_the_two_calls_that_matter() -> None:
    replays = 0

    def fails(indexes) -> bool:
        nonlocal replays
        replays += 1
        return 17 in indexes and 900 in indexes

    assert minimise(range(901), fails) == [17, 900]
    assert replays < 200
