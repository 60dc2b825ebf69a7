"""The wire scanner against the protobuf runtime and against damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast._ext import wire
from etcdfast.api.pb import kv_pb2

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.binary(max_size=300), st.binary(max_size=300), INT64, INT64, INT64, INT64)
def test_fields_of_a_real_message(key, value, create, mod, version, lease):
    message = kv_pb2.KeyValue(
        key=key, value=value, create_revision=create, mod_revision=mod, version=version, lease=lease
    )
    content = [(1, 2, key), (2, 0, create), (3, 0, mod), (4, 0, version), (5, 2, value), (6, 0, lease)]
    expected = [(n, kind, c % 2**64 if kind == 0 else c) for n, kind, c in content if c]
    assert wire.fields(message.SerializeToString()) == expected


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_an_error(data):
    try:
        found = wire.fields(data)
    except wire.WireError:
        return
    assert sum(len(content) for _, kind, content in found if kind == 2) <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0a\x05abc",  # runs past the end
        b"\x08",  # no value
        b"\x08" + b"\xff" * 10,  # a varint of eleven bytes
        b"\x08" + b"\xff" * 9 + b"\x02",  # a varint of more than 64 bits
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2^64 - 1
        b"\x09abc",  # fixed64 cut short
    ],
)
def test_malformed(data):
    with pytest.raises(wire.WireError):
        wire.fields(data)


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trip(value):
    assert wire.fields(b"\x08" + wire.varint(value)) == [(1, 0, value)]
