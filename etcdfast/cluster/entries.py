"""Entries that members themselves write: names and client URLs, cluster version, downgrade.

etcd 3.4 and 3.5 write the first two as v2 requests (proto2, bare), 3.6 and later as InternalRaftRequest; 3.4 stops
at the latter form, 3.7 at the former, 3.5 and 3.6 take both. Readers take both.

Source: reference/formats.md sections 3.1, 3.2 and 3.4.
"""

import json

from etcdfast.formats import gojson
from etcdfast.formats.raftpb import RaftMessageError, put_bytes, put_uint, read_fields

_HEADER = 100
_CLUSTER_VERSION_SET = 1300
_CLUSTER_MEMBER_ATTR_SET = 1301
_DOWNGRADE_INFO_SET = 1302
_OWN = {_CLUSTER_VERSION_SET: bytes, _CLUSTER_MEMBER_ATTR_SET: bytes, _DOWNGRADE_INFO_SET: bytes}
# Field 2 of an InternalRaftRequest would be a v2 request within, of a v2 request its method.
_V2 = {1: int, 2: bytes, 3: bytes, 4: bytes}
_FIRST_V2_BYTE = 0x08  # the id; no request of today has a field 1
_FIRST_OWN_BYTES = b"\xa2\x06"  # the header: a client's request lies before it


# ---- writing ----


def _request(request_id, number, message):
    return put_bytes(_HEADER, put_uint(1, request_id)) + put_bytes(number, message)


def _text(number, value):
    """A proto3 string: empty is left out."""
    return put_bytes(number, value.encode()) if value else b""


def attributes(request_id, member_id, name, client_urls, v2=False):
    """Publish a member's name and client URLs; `v2`: in the form of 3.4 and 3.5."""
    if v2:
        value = gojson.dumps({"name": name, "clientURLs": list(client_urls)})
        return _v2_put(request_id, f"/0/members/{member_id:x}/attributes", value)
    inner = _text(1, name) + b"".join(_text(2, url) for url in client_urls)
    return _request(request_id, _CLUSTER_MEMBER_ATTR_SET, put_uint(1, member_id) + put_bytes(2, inner))


def cluster_version(request_id, version, v2=False):
    """Set the cluster version, for example "3.7.0"."""
    if v2:
        return _v2_put(request_id, "/0/version", version)
    return _request(request_id, _CLUSTER_VERSION_SET, _text(1, version))


def _v2_put(request_id, path, value):
    # Every field that is not nullable is written, zeros included.
    return b"".join(
        [
            put_uint(1, request_id),
            put_bytes(2, b"PUT"),
            put_bytes(3, path.encode()),
            put_bytes(4, value.encode()),
            put_uint(5, 0),
            put_bytes(6, b""),
            put_uint(7, 0),
            *(put_uint(number, 0) for number in (9, 10, 11, 12, 13, 14, 15, 16)),
        ]
    )


# ---- reading ----


def concerns_members(data):
    """Whether an entry's bytes begin like those of an entry that `read` may know; any request of a client does not."""
    return data[:1] == b"\x08" or data[:2] == _FIRST_OWN_BYTES


def read(data):
    """What an entry says about the membership, for Membership.carry_out:

        ("attributes", member id, name, client urls) | ("version", text) | ("downgrade", enabled, version)

    or None for anything else, unreadable bytes too: apply decides on such an entry.
    """
    if not concerns_members(data):
        return None
    try:
        if data[0] == _FIRST_V2_BYTE:
            return _read_v2(data)
        found = read_fields(data, _OWN)
        # Only one of them is set; of a field written twice the last counts.
        for number, parse in _PARSERS.items():
            if found[number]:
                return parse(found[number][-1])
    except (RaftMessageError, ValueError, TypeError, AttributeError):
        pass
    return None


def _read_v2(data):
    found = read_fields(data, _V2)
    method, path, value = ((found[number] or [b""])[-1].decode() for number in (2, 3, 4))
    if method != "PUT":
        return None
    if path == "/0/version":
        return "version", value
    parts = path.split("/")
    if parts[:3] != ["", "0", "members"] or parts[4:] != ["attributes"]:
        return None
    attributes = json.loads(value)
    urls = tuple(str(url) for url in attributes.get("clientURLs") or ())
    return "attributes", int(parts[3], 16), str(attributes.get("name") or ""), urls


def _read_version(message):
    return "version", _last_text(read_fields(message, {1: bytes})[1])


def _read_attributes(message):
    found = read_fields(message, {1: int, 2: bytes})
    name, urls = "", []
    for inner in found[2]:  # a message written in two parts is merged
        texts = read_fields(inner, {1: bytes, 2: bytes})
        name = _last_text(texts[1]) or name
        urls += [url.decode() for url in texts[2]]
    return "attributes", (found[1] or [0])[-1], name, tuple(urls)


def _read_downgrade(message):
    found = read_fields(message, {1: int, 2: bytes})
    return "downgrade", bool((found[1] or [0])[-1]), _last_text(found[2])


def _last_text(values):
    return values[-1].decode() if values else ""


_PARSERS = {
    _CLUSTER_VERSION_SET: _read_version,
    _CLUSTER_MEMBER_ATTR_SET: _read_attributes,
    _DOWNGRADE_INFO_SET: _read_downgrade,
}
