"""JSON in Go's bytes: the escapes, and that it reads back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast.formats import gojson


@pytest.mark.parametrize(
    "value, text",
    [
        ({"a": 1 << 63, "b": ["x", None, True]}, '{"a":9223372036854775808,"b":["x",null,true]}'),
        ("<&>\u2028\u2029", '"\\u003c\\u0026\\u003e\\u2028\\u2029"'),
        ('ä\n\t"', '"ä\\n\\t\\""'),
        ("\b\f", '"\\u0008\\u000c"'),
        ("\\b\\\b", '"\\\\b\\\\\\u0008"'),
    ],
)
def test_escapes(value, text):
    assert gojson.dumps(value) == text


@given(st.dictionaries(st.text(), st.text() | st.integers(0, 2**64 - 1)))
def test_what_is_written_reads_back(value):
    assert json.loads(gojson.dumps(value)) == value
