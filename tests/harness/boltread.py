"""Reads a bbolt file of a stopped etcd: just enough to see what is in its buckets.

Source: reference/formats.md section 7.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = 0xED0CDAED
_BRANCH, _LEAF = 1, 2


def buckets(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    """Every top-level bucket with its keys and values, in the order of the file.

    Errors: AssertionError when this is no bbolt file.
    """
    data = Path(path).read_bytes()
    size, root = _newest_meta(data)
    found: dict[bytes, dict[bytes, bytes]] = {}
    for name, value in _items(data, size, root * size):
        page, _ = struct.unpack_from("<QQ", value)
        found[name] = dict(_items(value, 0, 16) if page == 0 else _items(data, size, page * size))
    return found


def _newest_meta(data: bytes) -> tuple[int, int]:
    """Page size and root page of the meta with the higher transaction."""
    metas = []
    size = struct.unpack_from("<I", data, 24)[0]
    for page in (0, 1):
        magic, version, page_size, _, root, _, _, _, txid = struct.unpack_from("<IIIIQQQQQ", data, page * size + 16)
        assert (magic, version, page_size) == (_MAGIC, 2, size), "no bbolt file"
        metas.append((txid, root))
    return size, max(metas)[1]


def _items(data: bytes, size: int, at: int) -> Iterator[tuple[bytes, bytes]]:
    _, flags, count, _ = struct.unpack_from("<QHHI", data, at)
    for element in range(at + 16, at + 16 + 16 * count, 16):
        if flags == _BRANCH:
            child = struct.unpack_from("<IIQ", data, element)[2]
            yield from _items(data, size, child * size)
        else:
            assert flags == _LEAF, f"page of kind {flags}"
            _, start, key_bytes, value_bytes = struct.unpack_from("<IIII", data, element)
            key_at = element + start
            yield data[key_at : key_at + key_bytes], data[key_at + key_bytes : key_at + key_bytes + value_bytes]
