"""The checksum and the record codec against an independent model of the format."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast._ext import crc32c, walrec, walscan
from tests.unit import walmodel

U64 = st.integers(0, 2**64 - 1)
CRC = st.integers(0, 2**32 - 1)

# RFC 3720 B.4, and the usual check word
KNOWN = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize("update", [crc32c.update, crc32c.update_portable])
@pytest.mark.parametrize(("data", "expected"), KNOWN)
def test_crc_known_vectors(update, data, expected):
    assert update(0, data) == expected


def test_crc_paths_agree_at_every_length_alignment_and_seed():
    rng = random.Random(20261120)
    data = rng.randbytes(8192)
    lengths = [*range(420), 1023, 1024, 1025, 3071, 3072, 3073, 3264, 6143, 6144, 6200, 8000]
    for length in lengths:
        start, seed = rng.randrange(64), rng.getrandbits(32)
        piece = data[start : start + length]
        assert crc32c.update(seed, piece) == crc32c.update_portable(seed, piece), (start, length, seed)


def test_crc_portable_path_is_the_bitwise_definition():
    rng = random.Random(7)
    for length in range(70):
        data, seed = rng.randbytes(length), rng.getrandbits(32)
        assert crc32c.update_portable(seed, data) == walmodel.crc32c(seed, data)


@given(st.binary(max_size=600), st.integers(0, 600), CRC)
def test_crc_chains(data, cut, seed):
    assert crc32c.update(crc32c.update(seed, data[:cut]), data[cut:]) == crc32c.update(seed, data)


@given(CRC, st.integers(0, 2), U64, U64, st.binary(max_size=40), st.binary(max_size=700), st.binary(max_size=40))
def test_entry_frame_is_the_models(crc, kind, term, index, prefix, data, suffix):
    whole = prefix + data + suffix
    expected = walmodel.frame(crc, walmodel.ENTRY, walmodel.entry(kind, term, index, whole or None))
    assert walrec.encode_entry(crc, kind, term, index, prefix, data, suffix) == expected


@given(CRC, U64, U64, U64)
def test_state_frame_is_the_models(crc, term, vote, commit):
    expected = walmodel.frame(crc, walmodel.STATE, walmodel.state(term, vote, commit))
    assert walrec.encode_state(crc, term, vote, commit) == expected


@given(CRC, U64, U64, st.sampled_from([None, b"\x08\x01\x28\x00", b"\x08\x01\x08\xff\x01\x10\x05\x28\x01"]))
def test_snapshot_frame_is_the_models(crc, index, term, conf_state):
    expected = walmodel.frame(crc, walmodel.SNAPSHOT, walmodel.snapshot(index, term, conf_state))
    assert walrec.encode_snapshot(crc, index, term, conf_state) == expected


@given(CRC)
def test_crc_frame_is_the_models(crc):
    assert walrec.encode_crc(crc) == walmodel.frame(crc, walmodel.CRC, None)[0]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_frames_of_every_checksum_width(width):
    """The data moves when the checksum's varint is short; random seeds hardly ever give the short ones."""
    data = walmodel.entry(0, 1, 77, b"payload")
    for crc in (0 if width == 1 else 1 << 7 * (width - 1), min(1 << 7 * width, 1 << 32) - 1):
        seed = _seed_for(data, crc)
        got = walrec.encode_entry(seed, 0, 1, 77, b"pay", b"lo", b"ad")
        assert got == walmodel.frame(seed, walmodel.ENTRY, data)
        assert got[1] == crc


def _seed_for(data, crc):
    """The rolling value before `data` that makes the value after it `crc`: the table run backwards."""
    reverse = {walmodel._TABLE[i] >> 24: i for i in range(256)}
    value = crc ^ 0xFFFFFFFF
    for byte in reversed(data):
        i = reverse[value >> 24]
        value = ((value ^ walmodel._TABLE[i]) << 8 & 0xFFFFFFFF) | (i ^ byte)
    return value ^ 0xFFFFFFFF


@given(st.lists(st.binary(max_size=300), max_size=20), CRC)
def test_reader_walks_what_the_model_wrote(payloads, seed):
    content, crc = walmodel.frame(seed, walmodel.CRC, None)[0], seed
    for i, payload in enumerate(payloads):
        piece, crc = walmodel.frame(crc, walmodel.ENTRY, walmodel.entry(0, 1, i + 1, payload))
        content += piece
    at, running, read = 0, 0, []
    while True:
        code, size, kind, running, data = walrec.next_frame(content, at, running)
        if code != walscan.OK:
            break
        read.append((kind, data))
        at += size
    assert code == walscan.END
    assert at == len(content)
    assert running == crc
    expected = [(2, walmodel.entry(0, 1, i + 1, p)) for i, p in enumerate(payloads)]
    assert read == [(4, None), *expected]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (0x8000000000000008, "a padding byte without padding"),
        (0x8300000000000006, "padding that does not fit the length"),
        (0x0200000000000006, "padding without its mark"),
        (0x8800000000000000, "no record"),
    ],
)
def test_contradictory_length_word_is_named(word, why):
    content = struct.pack("<Q", word) + b"\x08\x02\x10\x00\x1a\x00" + bytes(18)
    code, *_ = walrec.next_frame(content, 0, 0)
    assert walscan.describe(code) == "length field is damaged", why


@given(st.binary(max_size=300), st.booleans())
def test_reader_survives_any_bytes(content, last):
    content += bytes(-len(content) % 8)
    at, crc = 0, 0
    while True:
        code, size, _, crc, _ = walrec.next_frame(content, at, crc, last)
        if code != walscan.OK:
            break
        assert size >= 16
        at += size
    assert code != walscan.TORN or last or at + 8 <= len(content)
    scan = walscan.LogScan(0)
    assert scan.segment(content, last) != walscan.OK
