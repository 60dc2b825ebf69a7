"""Rings between processes: order, wrap-around, bounds, and wake-ups that are never lost."""

import os
import random
import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast._ext.ring import KINDS, RECORD_HEADER_BYTES, Ring, RingError, StatusPage, format_ring

CAPACITY = 4096


def make(capacity=CAPACITY):
    fd = os.memfd_create("ring")
    format_ring(fd, capacity)
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    room_bell = os.eventfd(0, os.EFD_NONBLOCK)
    producer, consumer = Ring(fd, bell), Ring(fd, room_bell)
    os.close(fd)
    return producer, consumer, bell, room_bell


def close(*fds):
    for fd in fds:
        os.close(fd)


@given(st.lists(st.binary(max_size=CAPACITY - RECORD_HEADER_BYTES), max_size=60), st.integers(1, 8))
def test_records_come_out_as_they_went_in(payloads, lag):
    producer, consumer, *bells = make()
    waiting = []
    for number, payload in enumerate(payloads):
        while not producer.push(KINDS["PROPOSE"], payload, index=number, stream=number & 0xFFFF):
            found = consumer.pop()
            assert (found["payload"], found["index"]) == waiting.pop(0)
        waiting.append((payload, number))
        while len(waiting) > lag:
            found = consumer.pop()
            assert (found["payload"], found["index"]) == waiting.pop(0)
    while waiting:
        found = consumer.pop()
        assert (found["payload"], found["index"]) == waiting.pop(0)
    assert consumer.pop() is None
    close(*bells)


def test_every_header_field_travels():
    producer, consumer, *bells = make()
    fields = dict(
        method=4, frontend=2, flags=3, slot=2**32 - 1, generation=7, stream=2**31 - 1, status=9, index=2**64 - 1, term=5
    )
    assert producer.push(KINDS["REPLY"], b"x", **fields)
    assert consumer.pop() == {"kind": KINDS["REPLY"], "payload": b"x", **fields}
    close(*bells)


def test_a_record_as_large_as_the_ring_fits_wherever_it_begins():
    producer, consumer, *bells = make()
    whole = (bytes(range(256)) * 16)[: CAPACITY - RECORD_HEADER_BYTES]
    for lead in range(0, 200, 8):
        assert producer.push(1, b"." * lead)
        assert consumer.pop()["payload"] == b"." * lead
        assert producer.push(1, whole)
        assert not producer.push(1, b"")
        assert consumer.pop()["payload"] == whole
    close(*bells)


def test_a_record_that_can_never_fit_is_an_error():
    producer, _, *bells = make()
    with pytest.raises(RingError, match="larger than the ring"):
        producer.push(1, b"x" * (CAPACITY - RECORD_HEADER_BYTES + 1))
    close(*bells)


def test_unpublished_records_are_not_seen():
    producer, consumer, *bells = make()
    producer.push(1, b"a", publish=False)
    assert consumer.pop() is None
    producer.publish()
    assert consumer.pop()["payload"] == b"a"
    close(*bells)


def test_only_a_sleeper_is_rung():
    producer, consumer, bell, room_bell = make()
    producer.push(1, b"a")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bell)
    assert not consumer.sleep()
    consumer.pop()
    assert consumer.sleep()
    producer.push(1, b"b")
    producer.push(1, b"c")
    assert os.eventfd_read(bell) == 1
    close(bell, room_bell)


def test_a_producer_without_room_is_rung_when_there_is_some():
    producer, consumer, bell, room_bell = make()
    while producer.push(1, b"x" * 1000):
        pass
    assert not producer.await_room(1000)
    consumer.pop()
    assert os.eventfd_read(room_bell) == 1
    assert producer.push(1, b"x" * 1000)
    close(bell, room_bell)


@pytest.mark.parametrize("damage", [0, 8, 39, 1 << 20, 2**32 - 1])
def test_a_length_that_lies_is_named(damage):
    fd = os.memfd_create("ring")
    format_ring(fd, CAPACITY)
    producer, consumer = Ring(fd, -1), Ring(fd, -1)
    producer.push(1, b"abc")
    os.pwrite(fd, damage.to_bytes(4, "little"), 4096)
    close(fd)
    with pytest.raises(RingError, match="past its published bytes"):
        consumer.pop()


@pytest.mark.parametrize("tail", [CAPACITY + 8, 1 << 40, 2**64 - 8])
def test_a_position_beyond_the_ring_is_named(tail):
    """Even when the record's own length would fit what claims to be published."""
    tail_at = 128  # ring_control in ring.h
    fd = os.memfd_create("ring")
    format_ring(fd, CAPACITY)
    consumer = Ring(fd, -1)
    os.pwrite(fd, tail.to_bytes(8, "little"), tail_at)
    os.pwrite(fd, (CAPACITY + 8).to_bytes(4, "little"), 4096)
    close(fd)
    with pytest.raises(RingError, match="past its published bytes"):
        consumer.pop()


def test_any_bytes_in_a_ring_are_records_or_an_error():
    rand = random.Random(4)
    popped = 0
    for _ in range(500):
        fd = os.memfd_create("ring")
        format_ring(fd, CAPACITY)
        consumer = Ring(fd, -1)
        content = bytearray(rand.randbytes(CAPACITY))
        for at in range(0, CAPACITY, 8):
            if rand.random() < 0.5:
                content[at : at + 4] = rand.choice((40, 48, 100, 4000, CAPACITY)).to_bytes(4, "little")
        os.pwrite(fd, content, 4096)
        os.pwrite(fd, rand.choice((8, 48, 1000, CAPACITY, CAPACITY * 2)).to_bytes(8, "little"), 128)
        close(fd)
        try:
            while (found := consumer.pop()) is not None:
                assert len(found["payload"]) <= CAPACITY - RECORD_HEADER_BYTES
                popped += 1
        except RingError:
            continue
    assert popped > 50


@pytest.mark.parametrize("capacity", [0, 4095, 5000, 1 << 31])
def test_capacity_is_a_power_of_two_within_limits(capacity):
    fd = os.memfd_create("ring")
    with pytest.raises(RingError):
        format_ring(fd, capacity)
    close(fd)


def test_a_foreign_memfd_is_refused():
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8192)
    with pytest.raises(RingError, match="cannot map"):
        Ring(fd, -1)
    close(fd)


def produce(fd, bell, room_bell, seed, count, deadline_ms):
    producer, rand = Ring(fd, bell), random.Random(seed)
    poll = select.poll()
    poll.register(room_bell, select.POLLIN)
    for number in range(count):
        payload = bytes([number & 0xFF]) * rand.randrange(0, 700)
        while not producer.push(1, payload, index=number):
            if not producer.await_room(len(payload) + RECORD_HEADER_BYTES):
                if not poll.poll(deadline_ms):
                    return 3
                os.eventfd_read(room_bell)
    return 0


# A worker of pytest-xdist has a thread of its own, of which the child needs nothing.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_two_processes_lose_neither_record_nor_wake_up():
    """Both sides sleep whenever they can; a lost wake-up would be a poll that ends without an event."""
    seed, count, deadline_ms = 7, 30_000, 20_000
    fd = os.memfd_create("ring")
    format_ring(fd, CAPACITY)
    bell, room_bell = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    child = os.fork()
    if child == 0:
        os._exit(produce(fd, bell, room_bell, seed, count, deadline_ms))
    consumer, rand = Ring(fd, room_bell), random.Random(seed)
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    done = False
    try:
        for number in range(count):
            while (found := consumer.pop()) is None:
                if consumer.sleep():
                    assert poll.poll(deadline_ms), f"no wake-up before record {number}"
                    os.eventfd_read(bell)
                consumer.awake()
            assert found["index"] == number
            assert found["payload"] == bytes([number & 0xFF]) * rand.randrange(0, 700)
        done = True
    finally:
        if not done:
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        close(fd, bell, room_bell)
    assert status == 0


def test_status_page_is_shared():
    fd = os.memfd_create("status")
    os.ftruncate(fd, 4096)
    writer, reader = StatusPage(fd), StatusPage(fd)
    close(fd)
    writer[3] = 2**64 - 1
    assert reader[3] == 2**64 - 1
    with pytest.raises(IndexError):
        reader[512]
