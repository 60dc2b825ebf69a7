"""The table of tokens: two processes, its bounds, time, and random histories against a plain model."""

import os
import random
import subprocess
import sys

import pytest

from etcdfast._ext.tokenpage import NAME_BYTES_MAX, TokenError, TokenPage, TokenReader, format_tokens

SECOND = 10**9
SEED_VARIABLE = "ETCDFAST_SEED"


def table(slots=64, **limits):
    fd = os.memfd_create("tokens")
    format_tokens(fd, slots)
    return TokenPage(fd, **limits), TokenReader(fd), fd


def test_a_token_names_its_user_until_it_is_removed():
    page, reader, _ = table()
    assert reader.find(b"abc.1", SECOND) is None
    page.put(b"abc.1", b"ann", SECOND, revision=7)
    assert reader.find(b"abc.1", SECOND) == (b"ann", 7)
    assert reader.find(b"abc.10", SECOND) is None and reader.find(b"", SECOND) is None
    page.put(b"abc.1", b"bob", SECOND)
    assert reader.find(b"abc.1", SECOND) == (b"bob", 0)
    assert page.remove(b"abc.1") and not page.remove(b"abc.1")
    assert reader.find(b"abc.1", SECOND) is None and b"abc.1" not in page


def test_a_token_lives_on_while_it_is_used():
    page, reader, _ = table()
    page.put(b"t", b"ann", 0, ttl_ns=10 * SECOND)
    for now in range(5, 100, 9):
        assert reader.find(b"t", now * SECOND) == (b"ann", 0)
    assert page.expire(100 * SECOND) == []
    assert reader.find(b"t", 200 * SECOND) is None
    assert page.get(b"t", 105 * SECOND) == (b"ann", 0)
    assert page.expire(200 * SECOND) == [b"t"] and page.next_due_ns == 0
    assert page.get(b"t", 104 * SECOND) is None


def test_a_signed_token_ends_when_it_says_however_often_it_is_used():
    page, reader, _ = table()
    page.put(b"jwt", b"ann", 0, revision=3, expires_ns=60 * SECOND)
    assert reader.find(b"jwt", 59 * SECOND) == (b"ann", 3)
    assert reader.find(b"jwt", 60 * SECOND) is None
    assert page.expire(60 * SECOND) == [b"jwt"]


def test_who_is_dropped_loses_all_tokens():
    page, reader, _ = table()
    for i in range(20):
        page.put(b"t%d" % i, b"ann" if i % 2 else b"bob", SECOND)
    assert page.remove_user(b"ann") == 10 and page.remove_user(b"ann") == 0
    assert [reader.find(b"t%d" % i, SECOND) is None for i in range(20)] == [i % 2 == 1 for i in range(20)]
    page.clear()
    assert len(page) == 0 and all(reader.find(b"t%d" % i, SECOND) is None for i in range(20))


def test_more_tokens_than_slots_stay_valid_by_way_of_apply():
    page, reader, _ = table(slots=16)
    for i in range(100):
        page.put(b"t%d" % i, b"u%d" % i, i + 1, ttl_ns=SECOND)
    lost = [i for i in range(100) if reader.find(b"t%d" % i, 200) is None]
    assert len(lost) == 84 and len(page) == 100
    for i in lost:
        assert page.get(b"t%d" % i, 300) == (b"u%d" % i, 0)
        assert reader.find(b"t%d" % i, 300) == (b"u%d" % i, 0)


def test_the_longest_unused_goes_when_there_are_too_many():
    page, reader, _ = table(tokens_max=10)
    for i in range(10):
        page.put(b"t%d" % i, b"u", i * SECOND, ttl_ns=100 * SECOND)
    assert reader.find(b"t0", 50 * SECOND) and reader.find(b"t1", 50 * SECOND)
    page.put(b"new", b"u", 51 * SECOND, ttl_ns=100 * SECOND)
    assert len(page) == 10 and b"t2" not in page and b"t0" in page and b"t1" in page


def test_names_and_tables_have_their_limits():
    page, reader, fd = table()
    page.put(b"t", b"n" * NAME_BYTES_MAX, 1)
    assert reader.find(b"t", 1) == (b"n" * NAME_BYTES_MAX, 0)
    with pytest.raises(TokenError):
        page.put(b"u", b"n" * (NAME_BYTES_MAX + 1), 1)
    page.put(b"x" * 5000, b"", 1, revision=2)
    assert reader.find(b"x" * 5000, 1) == (b"", 2)
    for slots in (0, 4, 63, 1 << 30):
        with pytest.raises(TokenError):
            format_tokens(os.memfd_create("none"), slots)
    with pytest.raises(TokenError):
        TokenReader(os.memfd_create("empty"))
    os.ftruncate(fd, 8192)
    with pytest.raises(TokenError):
        TokenReader(fd)


def test_random_histories_agree_with_a_dictionary():
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    chance = random.Random(seed)
    page, reader, _ = table(slots=32)
    model, now = {}, 1
    for step in range(4000):
        where = f"seed {seed}, step {step}"
        now += chance.randrange(SECOND // 4)
        token, user = b"t%d" % chance.randrange(60), b"u%d" % chance.randrange(6)
        kind = chance.randrange(10)
        if kind < 3:
            ttl, until = chance.choice(((5, 0), (0, 8), (6, 9), (0, 0)))
            expires = until and now + until * SECOND
            page.put(token, user, now, revision=step, ttl_ns=ttl * SECOND, expires_ns=expires)
            model[token] = [user, step, ttl * SECOND, expires, now]
        elif kind == 3:
            assert page.remove(token) == (model.pop(token, None) is not None), where
        elif kind == 4 and chance.random() < 0.2:
            held = [t for t, entry in model.items() if entry[0] == user]
            assert page.remove_user(user) == len(held), where
            for t in held:
                del model[t]
        elif kind == 5:
            for t in page.expire(now):
                user, _, ttl, expires, used = model.pop(t)
                assert (expires and now >= expires) or (ttl and now - used >= ttl), where
        else:
            entry = model.get(token)
            found = reader.find(token, now)
            if found is None:
                found = page.get(token, now)
            if entry is None:
                assert found is None, where
                continue
            user, revision, ttl, expires, used = entry
            ended = expires and now >= expires
            if found is not None:
                # Use is stamped with a grain of an eighth of the TTL: a token may live that much longer, never less.
                assert found == (user, revision), where
                assert not ended and (not ttl or now - used < ttl + ttl // 8), where
                entry[4] = now
            else:
                assert ended or (ttl and now - used >= ttl), where
                model.pop(token)
                page.remove(token)
    assert len(page) == len(model)


WRITER = """
import select, sys
from etcdfast._ext.tokenpage import TokenPage
page = TokenPage(int(sys.argv[1]))
print("ready", flush=True)
i = 0
while not select.select([int(sys.argv[2])], [], [], 0)[0]:
    for _ in range(500):
        i += 1
        name = b"%d" % (i % 7) * (40 + i % 11)
        page.put(b"hot%d" % (i % 3), name, 1, revision=int(name[:1]) + 1)
        if i % 5 == 0:
            page.remove(b"hot%d" % (i % 3))
print(i, flush=True)
"""


def test_a_reader_never_sees_half_a_token_that_another_process_writes():
    page, reader, fd = table(slots=8)
    stop_read, stop_write = os.pipe()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(fd), str(stop_read)],
        pass_fds=(fd, stop_read),
        stdout=subprocess.PIPE,
        text=True,
    )
    seen, missed = 0, 0
    try:
        assert writer.stdout.readline() == "ready\n"
        while seen < 20_000 and missed < 2_000_000:
            for token in (b"hot0", b"hot1", b"hot2"):
                found = reader.find(token, 1)
                if found is None:
                    missed += 1
                    continue
                seen += 1
                name, revision = found
                assert len(set(name)) == 1 and 40 <= len(name) <= 50 and revision == int(name[:1]) + 1
    finally:
        os.close(stop_write)
        writer.communicate(timeout=30)
    assert seen >= 20_000
