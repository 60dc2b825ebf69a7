"""`db dump` and `db check`: a database file for a person who looks for what is in it."""

from itertools import islice

from etcdfast._ext import wire
from etcdfast.formats import backend
from etcdfast.utl import output
from etcdfast.utl.errors import UtlError
from etcdfast.utl.status import open_database

SHOWN_BYTES_MAX = 256


def db_check(options, arguments):
    with open_database(arguments[0]) as reader:
        reader.check()
        print(f"{arguments[0]}: {reader.size // reader.page_size} pages of {reader.page_size} bytes are sound")


def db_dump(options, arguments):
    with open_database(arguments[0]) as reader:
        bucket = options["bucket"].encode()
        if not bucket:
            rows = []
            for name in reader.buckets():
                count = size = 0
                for batch in reader.batches(name):
                    count += len(batch)
                    size += sum(len(key) + len(value) for key, value in batch)
                rows.append([name.decode(errors="backslashreplace"), str(count), output.human_bytes(size)])
            print(output.table(["bucket", "items", "size"], rows, left=1))
            return
        if bucket not in reader.buckets():
            raise UtlError(f"no bucket {options['bucket']!r} in {arguments[0]}; it has {_listed(reader)}")
        for key, value in islice(reader.items(bucket), options["limit"] or None):
            print(_line(bucket, key, value))


def _listed(reader):
    return ", ".join(name.decode(errors="backslashreplace") for name in reader.buckets()) or "none"


def _line(bucket, key, value):
    if bucket == b"key" and len(key) >= 17:
        main, sub = backend.main_revision(key), int.from_bytes(key[9:17], "big")
        found = {number: data for number, _, data in wire.fields(value)}
        words = f"rev={main}/{sub} key={_text(found.get(1, b''))}"
        if len(key) > 17:
            return words + " tombstone"
        lease = f" lease={found[6]:x}" if 6 in found else ""
        return (
            f"{words} value={_text(found.get(5, b''))} create={found.get(2, 0)} mod={found.get(3, 0)} "
            f"version={found.get(4, 0)}{lease}"
        )
    if bucket == b"lease":
        found = {number: data for number, _, data in wire.fields(value)}
        return f"lease={int.from_bytes(key, 'big'):x} ttl={found.get(2, 0)} remaining={found.get(3, 0)}"
    return f"key={_text(key)} value={_text(value)}"


def _text(data):
    """Bytes as text in quotes; what is no text as hex."""
    shown = data[:SHOWN_BYTES_MAX]
    more = "" if len(data) <= SHOWN_BYTES_MAX else f"... ({len(data)} bytes)"
    try:
        return f'"{shown.decode()}"{more}' if shown.decode().isprintable() else f"0x{shown.hex()}{more}"
    except UnicodeDecodeError:
        return f"0x{shown.hex()}{more}"
