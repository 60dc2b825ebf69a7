"""Requests that are no JSON, or not of the right types: codes and messages of real etcd."""

from __future__ import annotations

import pytest

TEXTS = [
    "",
    " \n",
    "null",
    "{",
    "}",
    "[",
    "[]",
    "[1,2]",
    '"x"',
    "12",
    "-",
    "01",
    "1.",
    "1e",
    "true",
    "tru",
    "trux",
    "nul",
    "{}{}",
    "{} garbage",
    "{]",
    '{"a"}',
    '{"a":}',
    '{"a":1,}',
    '{"a" 1}',
    '{"a":1 "b":2}',
    '{"a":[1,]}',
    '{"a":[1 2]}',
    "{'a':1}",
    '{"a":"\\x"}',
    '{"a":"\\u12g4"}',
    '{"a":"\n"}',
    '{"a":"unended',
    '{"key":"YQ=="',
    '{"key":"YQ==","key":"Yg=="}',
    '{"key":1}',
    '{"key":true}',
    '{"key":{}}',
    '{"key":[]}',
    '{"key":null}',
    '{"key":"***"}',
    '{"key":"YQ=a"}',
    '{"key":"Y"}',
    '{"key":"YQ==","limit":"x"}',
    '{"key":"YQ==","limit":""}',
    '{"key":"YQ==","limit":"1x"}',
    '{"key":"YQ==","limit":"1.5"}',
    '{"key":"YQ==","limit":"01"}',
    '{"key":"YQ==","limit":"true"}',
    '{"key":"YQ==","limit":"null"}',
    '{"key":"YQ==","limit":" 1 "}',
    '{"key":"YQ==","limit":1.5}',
    '{"key":"YQ==","limit":1e2}',
    '{"key":"YQ==","limit":true}',
    '{"key":"YQ==","limit":{}}',
    '{"key":"YQ==","limit":[1]}',
    '{"key":"YQ==","limit":9223372036854775807}',
    '{"key":"YQ==","limit":9223372036854775808}',
    '{"key":"YQ==","limit":"-9223372036854775809"}',
    '{"key":"YQ==","limit":123456789012345678901234567890}',
    '{"key":"YQ==","serializable":1}',
    '{"key":"YQ==","serializable":"true"}',
    '{"key":"YQ==","sort_order":"FOO"}',
    '{"key":"YQ==","sort_order":"descend"}',
    '{"key":"YQ==","sort_order":"1"}',
    '{"key":"YQ==","unknown":{"deep":[{"er":1e400}]}}',
    '{"\\u006bey":"YQ=="}',
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_range(pair, text):
    pair.post("kv/range", text)


@pytest.mark.parametrize(
    "text",
    [
        '{"success":{}}',
        '{"success":[1]}',
        '{"success":[[]]}',
        '{"success":"x"}',
        '{"success":[{"request_put":1}]}',
        '{"success":[{"request_put":{"key":2}}]}',
        '{"compare":[{"target":"NONE"}]}',
        '{"success":null}',
        '{"success":[{"request_put":null}]}',
    ],
)
def test_a_txn(pair, text):
    pair.post("kv/txn", text)


@pytest.mark.parametrize("text", ['{"name":1}', '{"name":["x"]}', '{"name":"\\ud800"}'])
def test_texts(pair, text):
    pair.post("auth/user/get", text)


@pytest.mark.parametrize("text", ["{", "[]", '{"create_request":{"key":7}}', '{"create_request":1}', "tru"])
def test_a_watch(pair, text):
    pair.post("watch", text)


def test_what_newer_etcd_takes(web):
    """3.6 and later: the other base64 alphabet, and no padding."""
    web.post("/v3/kv/put", '{"key":"-_8","value":"eA"}')
    assert web.post("/v3/kv/range", '{"key":"+/8="}').json["kvs"][0]["value"] == "eA=="
