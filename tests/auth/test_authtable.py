"""Permissions in C against etcd's meaning written down plainly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.authtable import READ, READWRITE, WRITE, AuthTable
from etcdfast.api import errors

DENIED, EMPTY, OLD, UNKNOWN = (
    errors.ID[name] for name in ("PERMISSION_DENIED", "USER_EMPTY", "AUTH_OLD_REVISION", "USER_NOT_FOUND")
)
REVISION = 5

# Few bytes, so that keys collide, are prefixes of each other and touch.
KEYS = st.lists(st.sampled_from([0, 1, 97, 98, 255]), max_size=3).map(bytes)
ENDS = st.one_of(KEYS, st.just(b"\0"), st.just(b""))
PERMISSIONS = st.lists(st.tuples(st.sampled_from([READ, WRITE, READWRITE]), KEYS, ENDS), max_size=8)

# Above every key: what an open end stands for.
TOP = b"\xff" * 8


def interval(key, end):
    """[begin, end) of a permission or a request, None when it is empty."""
    if not key:
        return None
    if not end:
        return key, key + b"\0"
    top = TOP if end == b"\0" else end
    return (key, top) if key < top else None


def covered(granted, key, end):
    """Whether every key of the request lies in some granted interval: by walking from its begin to its end."""
    if not key:
        return False
    at = key
    top = TOP if end == b"\0" else end or key + b"\0"
    intervals = [found for found in (interval(*pair) for pair in granted) if found]
    if not any(begin <= at < stop for begin, stop in intervals):
        return False
    while at < top:
        reach = max((stop for begin, stop in intervals if begin <= at < stop or at == begin), default=at)
        if reach == at:
            return False
        at = reach
    return True


@settings(max_examples=150, deadline=None)
@given(PERMISSIONS, st.lists(st.tuples(KEYS, ENDS), min_size=1, max_size=12))
def test_a_request_is_permitted_when_all_of_its_keys_are(permissions, requests):
    table = AuthTable()
    table.set_enabled(True, REVISION)
    table.set_user(b"ann", False, permissions)
    reads = [(key, end) for kind, key, end in permissions if kind != WRITE]
    writes = [(key, end) for kind, key, end in permissions if kind != READ]
    for key, end in requests:
        if end and end != b"\0" and end <= key:
            continue  # inverted: below
        assert (table.may_read(b"ann", REVISION, key, end) == 0) == covered(reads, key, end), (key, end)
        assert (table.may_write(b"ann", REVISION, key, end) == 0) == covered(writes, key, end), (key, end)


@settings(max_examples=60, deadline=None)
@given(PERMISSIONS)
def test_merged_intervals_ascend_and_lie_apart(permissions):
    table = AuthTable()
    table.set_user(b"ann", False, permissions)
    for intervals in table.ranges(b"ann"):
        for (_, end), (begin, _) in zip(intervals, intervals[1:]):
            assert end and end < begin
        assert all(not end or begin < end for begin, end in intervals)


def test_an_inverted_range_is_judged_by_its_first_key_as_by_etcds_tree():
    table = AuthTable()
    table.set_enabled(True, REVISION)
    table.set_user(b"ann", False, [(READ, b"a", b"c"), (READ, b"m", b"")])
    assert table.may_read(b"ann", REVISION, b"b", b"a") == 0
    assert table.may_read(b"ann", REVISION, b"n", b"a") == DENIED
    assert table.may_read(b"ann", REVISION, b"", b"a") == DENIED


def test_why_a_request_is_refused():
    table = AuthTable()
    assert table.may_write(b"", 0, b"a") == 0 and table.may_administer(b"") == 0  # auth is off
    table.set_enabled(True, REVISION)
    table.set_user(b"root", True)
    table.set_user(b"ann", False, [(READWRITE, b"a", b"")])
    assert table.may_read(b"ann", REVISION, b"a") == 0
    assert table.may_read(b"ann", REVISION, b"b") == DENIED
    assert table.may_read(b"ann", REVISION + 1, b"a") == 0
    assert table.may_read(b"ann", REVISION - 1, b"a") == OLD
    assert table.may_read(b"root", REVISION - 1, b"a") == OLD
    assert table.may_read(b"root", REVISION, b"", b"\0") == 0
    assert table.may_read(b"nobody", REVISION, b"a") == DENIED
    assert table.may_read(b"ann", 0, b"a") == EMPTY
    assert table.may_read(b"", REVISION, b"a") == DENIED  # a certificate without a name
    assert table.may_administer(b"root") == 0
    assert table.may_administer(b"ann") == DENIED
    assert table.may_administer(b"nobody") == UNKNOWN
    assert table.may_administer(b"") == EMPTY


def test_many_users_come_and_go():
    table = AuthTable()
    table.set_enabled(True, 1)
    names = [b"user%d" % i for i in range(3000)]
    for name in names:
        table.set_user(name, False, [(READWRITE, name + b"/", name + b"0")])
    assert table.count == 3000
    for name in names[::2]:
        assert table.remove_user(name) and not table.remove_user(name)
    for i, name in enumerate(names):
        assert table.may_write(name, 1, name + b"/k") == (DENIED if i % 2 == 0 else 0)
        assert table.may_write(names[1], 1, name + b"/k") == (0 if i == 1 else DENIED)
    table.set_user(names[1], False, [])
    assert table.may_write(names[1], 1, names[1] + b"/k") == DENIED
    table.clear()
    assert table.count == 0 and table.ranges(names[1]) is None
