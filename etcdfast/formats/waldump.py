"""Show a write-ahead log to a person: one line per record, damage named where it is.

Run as `python -m etcdfast.formats.wal DIR`.
"""

import argparse
import mmap
import sys

from etcdfast._ext import walrec, walscan
from etcdfast.formats.wal import WalProblem, list_segments

_RECORDS = {1: "METADATA", 2: "ENTRY", 3: "STATE", 4: "CRC", 5: "SNAPSHOT"}
_ENTRIES = {0: "normal", 1: "conf-change", 2: "conf-change-v2"}

# InternalRaftRequest fields, formats.md 3.1
_REQUESTS = {
    2: "v2", 3: "range", 4: "put", 5: "delete_range", 6: "txn", 7: "compaction", 8: "lease_grant",
    9: "lease_revoke", 10: "alarm", 11: "lease_checkpoint", 1000: "auth_enable", 1011: "auth_disable",
    1012: "authenticate", 1013: "auth_status", 1100: "auth_user_add", 1101: "auth_user_delete",
    1102: "auth_user_get", 1103: "auth_user_change_password", 1104: "auth_user_grant_role",
    1105: "auth_user_revoke_role", 1106: "auth_user_list", 1107: "auth_role_list", 1200: "auth_role_add",
    1201: "auth_role_delete", 1202: "auth_role_get", 1203: "auth_role_grant_permission",
    1204: "auth_role_revoke_permission", 1300: "cluster_version_set", 1301: "cluster_member_attr_set",
    1302: "downgrade_info_set",
}  # fmt: skip


def fields(data):
    """[(field number, wire type, int or bytes)] of a protobuf message. Errors: ValueError when it is none."""
    out, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("varint")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            value = varint()
        elif tag & 7 == 2:
            size = varint()
            if size > len(data) - at:
                raise ValueError("length")
            value = bytes(data[at : at + size])
            at += size
        else:
            raise ValueError(f"wire type {tag & 7}")
        out.append((tag >> 3, tag & 7, value))
    return out


def _numbers(data):
    return {number: value for number, _, value in fields(data)}


def _request(data):
    try:
        found = fields(data)
    except ValueError:
        return "v2 request"
    number = next((n for n, _, _ in found if n in _REQUESTS), None)
    words = _REQUESTS.get(number, "empty request")
    body = next((v for n, w, v in found if n == number and w == 2), b"")
    if number in (4, 5):
        words += f" key={_numbers(body).get(1, b'')!r}"
    header = next((v for n, w, v in found if n == 100 and w == 2), None)
    if header is not None:
        words += f" id={_numbers(header).get(1, 0):x}"
    return words


def describe_record(kind, data):
    """The words for one record's contents."""
    if kind == 4:
        return ""
    found = _numbers(data)
    if kind == 1:
        return f"member={found.get(1, 0):x} cluster={found.get(2, 0):x}"
    if kind == 3:
        return f"term={found.get(1, 0)} vote={found.get(2, 0):x} commit={found.get(3, 0)}"
    if kind == 5:
        conf_state = [n for n in fields(found[3])] if 3 in found else None
        voters = "" if conf_state is None else " voters=" + ",".join(f"{v:x}" for n, _, v in conf_state if n == 1)
        return f"index={found.get(1, 0)} term={found.get(2, 0)}{voters}"
    entry, payload = found.get(1, 0), found.get(4)
    words = f"index={found.get(3, 0)} term={found.get(2, 0)} {_ENTRIES.get(entry, entry)}"
    if payload is None:
        return words + " no data"
    return words + f" bytes={len(payload)}" + (f" {_request(payload)}" if entry == 0 else "")


def dump(directory, out):
    """Print every record of every segment to `out`. True when all of it reads. Errors: WalProblem, OSError."""
    segments = list_segments(directory)
    if not segments:
        raise WalProblem(f"no write-ahead log in {directory}")
    crc, sound = 0, True
    for segment in segments:
        with open(segment.path, "rb") as file:
            size = file.seek(0, 2)
            buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
        print(f"{segment.path}: {size} bytes, from index {segment.index}", file=out)
        offset, last = 0, segment is segments[-1]
        while True:
            code, frame_bytes, kind, crc, data = walrec.next_frame(buffer, offset, crc, last)
            if code != walscan.OK:
                break
            print(f"{offset:>9} {_RECORDS.get(kind, kind):<8} crc={crc:08x} {describe_record(kind, data)}", file=out)
            offset += frame_bytes
        print(f"{offset:>9} {walscan.describe(code)}", file=out)
        sound = sound and code == walscan.END
    return sound


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m etcdfast.formats.wal", description="List a write-ahead log.")
    parser.add_argument("directory", help="the directory that holds the .wal files (<data-dir>/member/wal)")
    options = parser.parse_args(argv)
    try:
        return 0 if dump(options.directory, sys.stdout) else 1
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (WalProblem, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
