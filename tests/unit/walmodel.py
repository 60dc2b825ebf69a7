"""An independent, slow reading and writing of the WAL format, straight from reference/formats.md section 1.

Shares no code with `_ext`: frames by struct, messages by the protobuf runtime, the checksum bit by bit.
"""

import struct
from typing import NamedTuple

from etcdfast.api.pb.raft_pb2 import Entry, HardState
from etcdfast.api.pb.record_pb2 import Record
from etcdfast.api.pb.record_pb2 import Snapshot as WalSnapshot

METADATA, ENTRY, STATE, CRC, SNAPSHOT = 1, 2, 3, 4, 5


def _table():
    rows = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


_TABLE = _table()


def crc32c(crc, data):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Frame(NamedTuple):
    offset: int
    end: int
    type: int
    crc: int
    data: bytes | None


def frames(content, crc=0):
    """Every frame of one segment; AssertionError at the first thing the format does not allow."""
    out, at = [], 0
    while at + 8 <= len(content):
        (word,) = struct.unpack_from("<Q", content, at)
        if word == 0:
            break
        size, top = word & ((1 << 56) - 1), word >> 56
        pad = -size % 8
        assert top == (0x80 | pad if pad else 0), (at, hex(word))
        body = content[at + 8 : at + 8 + size]
        assert len(body) == size, (at, "frame beyond the end")
        assert content[at + 8 + size : at + 8 + size + pad] == bytes(pad), (at, "padding")
        record = Record.FromString(body)
        assert record.SerializeToString() == body, (at, "record not in the canonical form")
        if record.type == CRC:
            assert not record.HasField("data") and record.crc == crc, (at, "seed")
        else:
            crc = crc32c(crc, record.data)
            assert record.crc == crc, (at, "crc")
        out.append(
            Frame(at, at + 8 + size + pad, record.type, record.crc, record.data if record.HasField("data") else None)
        )
        at += 8 + size + pad
    return out


def log(segments):
    """Frames of consecutive segments (their contents), the chain running through."""
    out, crc = [], 0
    for content in segments:
        found = frames(content, crc)
        assert [f.type for f in found[:2]] == [CRC, METADATA]
        crc = found[-1].crc
        out.append(found)
    return out


def frame(crc, kind, data):
    """(bytes, new crc) of one record, `data` None for a seed."""
    record = Record(type=kind)
    if data is not None:
        crc = crc32c(crc, data)
        record.data = data
    record.crc = crc
    body = record.SerializeToString()
    pad = -len(body) % 8
    word = len(body) | ((0x80 | pad) << 56 if pad else 0)
    return struct.pack("<Q", word) + body + bytes(pad), crc


def entry(kind, term, index, data=None):
    message = Entry(Type=kind, Term=term, Index=index)
    if data is not None:
        message.Data = data
    return message.SerializeToString()


def state(term, vote, commit):
    return HardState(term=term, vote=vote, commit=commit).SerializeToString()


def snapshot(index, term, conf_state=None):
    message = WalSnapshot(index=index, term=term)
    if conf_state is not None:
        message.conf_state.ParseFromString(conf_state)
    return message.SerializeToString()
