"""The raft log in C memory against a plain list, and its limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.raftlog import RaftLog, RaftLogFull

CHUNK_BYTES = 262144

sizes = st.one_of(
    st.integers(0, 300),
    st.sampled_from([0, 1, 65535, 65536, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), sizes),
        st.tuples(st.just("truncate"), st.integers(0, 8)),
        st.tuples(st.just("release"), st.integers(0, 8)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_equals_a_list(steps):
    log = RaftLog(100, 7, rows_max=16, bytes_max=1 << 20)
    rows, first, before_term, serial = [], 101, 7, 0
    for step, amount in steps:
        serial += 1
        if step == "append":
            data = bytes([serial & 0xFF]) * amount
            try:
                index = log.append(serial, data, type=serial % 3, request_id=serial * 7)
            except RaftLogFull:
                # Full only for a reason: rows, or chunks that the rows held do fill in part.
                assert len(rows) == 16 or log.bytes_held + max(amount, CHUNK_BYTES) > 1 << 20
                assert rows
                continue
            rows.append((serial, serial % 3, data, serial * 7))
            assert index == first + len(rows) - 1
        elif step == "truncate":
            keep = max(0, len(rows) - amount)
            log.truncate_after(first + keep - 1)
            del rows[keep:]
        else:
            count = min(amount, len(rows))
            if count:
                before_term = rows[count - 1][0]
            log.release_to(first + count - 1)
            del rows[:count]
            first += count
        assert (log.first_index, log.last_index) == (first, first + len(rows) - 1)
        assert [log.entry(first + i) for i in range(len(rows))] == rows
        assert log.term(first - 1) == before_term
        assert [log.term(first + i) for i in range(len(rows))] == [row[0] for row in rows]
        assert log.term(first + len(rows)) == 0
        assert log.bytes_held >= sum(len(row[2]) for row in rows)
    log.release_to(log.last_index)
    assert log.bytes_held <= CHUNK_BYTES


def test_an_empty_log_takes_an_entry_of_any_size():
    log = RaftLog(0, 0, rows_max=4, bytes_max=CHUNK_BYTES)
    log.append(1, bytes(5 * CHUNK_BYTES))
    with pytest.raises(RaftLogFull):
        log.append(1, b"x")
    log.release_to(1)
    log.append(1, b"x")
    assert log.bytes_held == CHUNK_BYTES


def test_memory_does_not_grow_with_traffic():
    log = RaftLog(0, 0, rows_max=1024, bytes_max=1 << 20)
    for index in range(1, 20001):
        assert log.append(1, bytes(index % 3000)) == index
        if index % 100 == 0:
            log.release_to(index - 50)
    assert log.bytes_held <= 4 * CHUNK_BYTES


@pytest.mark.parametrize("rows", [0, 3, 100])
def test_rows_must_be_a_power_of_two(rows):
    with pytest.raises(ValueError, match="power of two"):
        RaftLog(0, 0, rows_max=rows, bytes_max=1 << 20)


def test_what_is_not_held_is_an_index_error():
    log = RaftLog(5, 1, rows_max=4, bytes_max=1 << 20)
    log.append(2, b"a")
    for index in (0, 5, 7):
        with pytest.raises(IndexError):
            log.entry(index)
    with pytest.raises(IndexError):
        log.truncate_after(4)
    log.truncate_after(5)
    assert log.last_index == 5
