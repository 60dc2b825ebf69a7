"""The cluster's version: decisions as pure functions, entries byte for byte as etcd 3.5.1 writes them."""

import pytest

from etcdfast.cluster import entries
from etcdfast.consensus import versions
from etcdfast.formats import wal
from tests.harness.servers import EtcdServer


@pytest.mark.parametrize(
    "servers, known, downgrade, wanted",
    [
        (["3.7.1"], None, (False, ""), "3.7.0"),
        (["3.7.1", "3.5.1", "3.6.9"], None, (False, ""), "3.5.0"),
        # Somebody does not answer: only a cluster without any version gets one.
        (["3.7.1", None], None, (False, ""), "3.0.0"),
        (["3.7.1", "nonsense"], None, (False, ""), "3.0.0"),
        (["3.7.1", None], "3.0.0", (False, ""), None),
        (["3.7.1", "3.7.0"], "3.0.0", (False, ""), "3.7.0"),
        (["3.7.1", "3.5.1"], "3.5.0", (False, ""), None),
        (["3.7.1", "3.7.1"], "3.5.0", (False, ""), "3.7.0"),
        # Never down, but for a downgrade by one.
        (["3.7.1", "3.6.1"], "3.7.0", (False, ""), None),
        (["3.7.1", "3.6.1"], "3.7.0", (True, "3.6.0"), "3.6.0"),
        (["3.7.1", "3.5.1"], "3.7.0", (True, "3.6.0"), None),
        (["3.7.1", "3.7.1"], "3.6.0", (True, "3.6.0"), None),
        (["3.10.2", "3.9.1"], "3.8.0", (False, ""), "3.9.0"),
        ([], None, (False, ""), "3.0.0"),
    ],
)
def test_decision(servers, known, downgrade, wanted):
    assert versions.decide(dict(enumerate(servers)), known, downgrade) == wanted


@pytest.mark.parametrize(
    "told, joins",
    [
        ([], False),
        (["3.5.0"], True),
        (["not_decided"], False),
        (["not_decided", "3.5.0"], True),
        (["3.7.0", "3.0.0"], True),
        (["3.8.0"], False),
        (["3.5.0", "4.0.0"], False),
        (["2.3.0"], False),
    ],
)
def test_who_can_be_joined(told, joins):
    assert versions.compatible({i: ("3.5.1", cluster) for i, cluster in enumerate(told)}) == joins


@pytest.mark.parametrize(
    "known, v2", [(None, False), ("3.0.0", True), ("3.4.0", True), ("3.5.0", True), ("3.6.0", False), ("3.7.0", False)]
)
def test_form_of_entries(known, v2):
    assert versions.writes_v2(known) == v2


def test_a_cluster_that_is_ahead_is_refused():
    assert versions.refusal(None) is versions.refusal("3.7.0") is versions.refusal("3.5.0") is None
    assert "server version is lower than determined cluster version" in versions.refusal("3.8.0")
    assert versions.refusal("3.8.0", (True, "3.7.0")) is None


def test_entries_are_those_of_etcd(tmp_path):
    """Name and URLs, and the version, as real etcd 3.5.1 has them in its log."""
    urls = "http://127.0.0.1:1,http://[::1]:2"
    flags = ["--advertise-client-urls", urls]
    with EtcdServer(directory=tmp_path, name="m <1> ä", flags=flags) as server:
        server.stop()
    log = wal.read(server.data_dir / "member" / "wal")
    found = [log.entries.entry(row) for row in range(len(log.entries))]
    written = [data for kind, _, _, data in found if kind == 0 and data]
    read = [entries.read(data) for data in written]
    assert [told[0] for told in read] == ["attributes", "version"]
    (_, member_id, name, client_urls), (_, version) = read
    assert (name, client_urls, version) == ("m <1> ä", tuple(urls.split(",")), "3.5.0")
    ids = [int.from_bytes(_varint(data)) for data in written]
    assert written == [
        entries.attributes(ids[0], member_id, name, client_urls, v2=True),
        entries.cluster_version(ids[1], version, v2=True),
    ]


def _varint(data):
    """Field 1 of a v2 request, as big-endian bytes."""
    value, shift, at = 0, 0, 1
    while True:
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return value.to_bytes(8)
        at, shift = at + 1, shift + 7


def test_a_limit_keeps_the_version_down():
    mixed = {1: "3.7.1", 2: "3.5.1"}
    assert versions.decide({1: "3.7.1"}, None, highest="3.5.0") == "3.5.0"
    assert versions.decide(mixed, "3.4.0", highest="3.6.0") == "3.5.0"
    assert versions.decide({1: "3.7.1"}, "3.5.0", highest="3.5.0") in (None, "3.5.0")
    assert versions.decide({1: "3.7.1"}, "3.5.0") == "3.7.0"
