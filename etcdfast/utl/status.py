"""`snapshot status` and `hashkv`: what is in a database file."""

from etcdfast.formats import backend, bbolt
from etcdfast.utl import output
from etcdfast.utl.errors import UtlError


def snapshot_status(options, arguments):
    output.check_format(options["write-out"])
    with open_database(arguments[0]) as reader:
        status = reader.status()
        reader.check()
    row = [
        ("hash", f"{status.hash:x}"),
        ("revision", str(status.revision)),
        ("total keys", str(status.total_keys)),
        ("total size", output.human_bytes(status.total_bytes)),
    ]
    fields = [
        ("Hash", status.hash),
        ("Revision", status.revision),
        ("Keys", status.total_keys),
        ("Size", status.total_bytes),
    ]
    names = {
        "hash": status.hash,
        "revision": status.revision,
        "totalKey": status.total_keys,
        "totalSize": status.total_bytes,
    }
    output.show(options["write-out"], row, fields, names)


def hashkv(options, arguments):
    output.check_format(options["write-out"])
    with open_database(arguments[0]) as reader:
        try:
            found = backend.hash_kv(reader, options["rev"])
        except backend.RevisionError as err:
            raise UtlError(f"mvcc: {err}") from None
    row = [
        ("hash", str(found.hash)),
        ("hash revision", str(found.hash_revision)),
        ("compact revision", str(found.compact_revision)),
    ]
    fields = [
        ("Hash", found.hash),
        ("HashRevision", found.hash_revision),
        ("CompactRevision", found.compact_revision),
    ]
    names = {
        "hash": found.hash,
        "hashRevision": found.hash_revision,
        "compactRevision": found.compact_revision,
    }
    output.show(options["write-out"], row, fields, names)


def open_database(path):
    """A Reader. Errors: UtlError."""
    try:
        return bbolt.Reader(path)
    except FileNotFoundError:
        raise UtlError(f"stat {path}: no such file or directory") from None
    except IsADirectoryError:
        raise UtlError(f"{path} is a directory: give the database file in it (<data-dir>/member/snap/db)") from None
