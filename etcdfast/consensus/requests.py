"""Requests that a member itself proposes: marshalled InternalRaftRequest bytes (formats.md 3.1, 3.4)."""

import json

from etcdfast._ext.wire import WireError, fields
from etcdfast.formats.raftpb import ConfChange, encode_conf_change, put_bytes, put_uint

_HEADER = 100
_CLUSTER_VERSION_SET = 1300
_CLUSTER_MEMBER_ATTR_SET = 1301

ADD_NODE = 0


def _request(request_id, number, message):
    return put_bytes(_HEADER, put_uint(1, request_id)) + put_bytes(number, message)


def _text(number, value):
    """A proto3 string: empty is left out."""
    return put_bytes(number, value.encode()) if value else b""


def member_attributes(request_id, member_id, name, client_urls):
    """Publish a member's name and client URLs, in the form of 3.6 and later (3.5 applies it too)."""
    attributes = _text(1, name) + b"".join(_text(2, url) for url in client_urls)
    return _request(request_id, _CLUSTER_MEMBER_ATTR_SET, put_uint(1, member_id) + put_bytes(2, attributes))


def cluster_version(request_id, version):
    """Set the cluster version, for example "3.7.0"."""
    return _request(request_id, _CLUSTER_VERSION_SET, _text(1, version))


def bootstrap_member(member_id, peer_urls, name):
    """The ConfChangeAddNode of one first member; its id is 0, for nobody asked (formats.md 2.3)."""
    context = json.dumps(
        {"id": member_id, "peerURLs": list(peer_urls), "name": name}, separators=(",", ":"), ensure_ascii=False
    )
    return encode_conf_change(ConfChange(0, ADD_NODE, member_id, context.encode()))


def parse_own(data):
    """What an entry that begins with its header says, for the membership that consensus keeps.

    ("version", text), ("attributes", member id, name, client urls), or None for anything else.
    """
    try:
        for number, _, value in fields(data):
            if number == _CLUSTER_VERSION_SET:
                texts = [text for n, _, text in fields(value) if n == 1]
                return ("version", texts[-1].decode()) if texts else None
            if number == _CLUSTER_MEMBER_ATTR_SET:
                return _parse_attributes(value)
    except (WireError, UnicodeDecodeError, TypeError, AttributeError):
        return None  # apply decides on such an entry; here it only is no news about the membership
    return None


def _parse_attributes(message):
    member_id, name, urls = 0, "", []
    for number, _, value in fields(message):
        if number == 1:
            member_id = value
        elif number == 2:
            for inner, _, text in fields(value):
                if inner == 1:
                    name = text.decode()
                elif inner == 2:
                    urls.append(text.decode())
    return "attributes", member_id, name, tuple(urls)
