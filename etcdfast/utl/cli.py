"""etcdfastutl: the table of commands, and how a command line becomes an exit status."""

import os
import sys

from etcdfast.utl import flags
from etcdfast.utl.errors import INTERRUPTED, UsageError, UtlError
from etcdfast.utl.flags import Command, Flag

PROG = "etcdfastutl"


def _later(module, function):
    """A command's function, imported when it is called: `--help` and `status` load no more than they need."""

    def run(options, arguments):
        from importlib import import_module

        return getattr(import_module(f"etcdfast.utl.{module}"), function)(options, arguments)

    return run


_CLUSTER_FLAGS = (
    Flag("name", "string", "default", "Human-readable name for this member"),
    Flag("initial-cluster", "string", "default=http://localhost:2380", "Members of the restored cluster"),
    Flag("initial-cluster-token", "string", "etcd-cluster", "Token of the restored cluster; makes its ids its own"),
    Flag(
        "initial-advertise-peer-urls",
        "string",
        "http://localhost:2380",
        "Peer URLs of this member, as --initial-cluster has them",
    ),
)

COMMANDS = (
    Command(
        ("snapshot", "save"),
        " <filename>",
        "Stores a snapshot of a running member's database in a file",
        "Store a snapshot of the database of one member, etcd or etcdfast, in a file.\n\n"
        "The file is written as <filename>.part, checked against the SHA-256 that the member sends, synced,\n"
        "and renamed: a file of the given name is always a whole snapshot.",
        (
            Flag("endpoints", "string", "127.0.0.1:2379", "the member to ask (exactly one)"),
            Flag("dial-timeout", "duration", 5.0, "how long to try to connect"),
            Flag("user", "string", "", "username[:password]; asks for the password if it is not given"),
            Flag("password", "string", "", "password of --user"),
            Flag("cacert", "string", "", "file with the CA that signed the server's certificate: use TLS"),
            Flag("cert", "string", "", "file with this client's certificate"),
            Flag("key", "string", "", "file with this client's key"),
            Flag("insecure-skip-tls-verify", "bool", False, "take any certificate of the server: for tests only"),
        ),
        (1, "snapshot save expects one argument"),
        _later("save", "snapshot_save"),
        f"  {PROG} snapshot save --endpoints 10.0.0.1:2379 backup.db\n",
    ),
    Command(
        ("snapshot", "restore"),
        " <filename> --data-dir {output dir} [options]",
        "Restores an etcd member snapshot to a data directory",
        "Make the data directory of a new cluster's member out of a snapshot. Run it once for each member, with the\n"
        "same file, and each with its own --name and --initial-advertise-peer-urls. etcdfast and etcd both start\n"
        "from the directory it makes. If anything goes wrong, nothing is left behind.",
        (
            Flag("data-dir", "string", "", "Path to the output data directory; must be empty or not exist"),
            Flag("wal-dir", "string", "", "Path to the WAL directory (use --data-dir if none given)"),
            Flag(
                "skip-hash-check",
                "bool",
                False,
                "Do not check the file's SHA-256 (required if copied from a data directory: it has none)",
            ),
            Flag("bump-revision", "uint", 0, "How far to raise the latest revision, so that no client sees it go back"),
            Flag(
                "mark-compacted",
                "bool",
                False,
                "Mark the revision after the raise as compacted (goes with --bump-revision)",
            ),
            *_CLUSTER_FLAGS,
        ),
        (1, "snapshot restore requires exactly one argument"),
        _later("restore", "snapshot_restore"),
        f"  {PROG} snapshot restore backup.db --data-dir /var/lib/etcd\n"
        f"  {PROG} snapshot restore backup.db --data-dir m1.etcd --name m1 \\\n"
        "      --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380 \\\n"
        "      --initial-advertise-peer-urls http://10.0.0.1:2380\n",
    ),
    Command(
        ("snapshot", "status"),
        " <filename>",
        "Shows hash, revision, number of keys and size of a snapshot file",
        "Check every page of a snapshot file (or of the database in the data directory of a stopped etcd) and show\n"
        "its hash, its revision, how many items it holds in all buckets, and its size. Equal hashes are equal data.",
        (),
        (1, "snapshot status requires exactly one argument"),
        _later("status", "snapshot_status"),
        f"  {PROG} snapshot status backup.db -w table\n",
    ),
    Command(
        ("hashkv",),
        " <filename>",
        "Shows the hash of all keys in a database file",
        "Show the hash of all keys and their history up to a revision, as the HashKV call of a member with this\n"
        "database gives it: to compare a backup with a running cluster (etcdctl endpoint hashkv).",
        (Flag("rev", "int", 0, "maximum revision to hash (default: latest revision)"),),
        (1, "hashkv requires exactly one argument"),
        _later("status", "hashkv"),
        f"  {PROG} hashkv backup.db --rev 1200\n",
    ),
    Command(
        ("migrate",),
        " --data-dir {dir} --target {etcd | etcdfast}",
        "Makes a data directory of etcd one of etcdfast, or the other way round",
        "Move one member between etcd and etcdfast, with data, ids and place in the cluster. Stop it first.\n\n"
        "To etcdfast: checks log, snapshot and database, and imports the database, in place. (etcdfast does the same\n"
        "by itself at its first start on a data directory of etcd.) The old database stays until the second start.\n"
        "To etcd: writes a new data directory and leaves the old one as it is; never start both.",
        (
            Flag("data-dir", "string", "", "data directory of the stopped member"),
            Flag("wal-dir", "string", "", "its WAL directory, if that lies elsewhere"),
            Flag("target", "string", "", "etcd or etcdfast"),
            Flag("target-version", "string", "3.5", "release of etcd that shall open the directory (3.4 to 3.7)"),
            Flag("output-dir", "string", "", "where to write the directory for etcd (default: {data-dir}.etcd)"),
            Flag("dry-run", "bool", False, "with --target etcdfast: only check"),
            Flag("force", "bool", False, "lower the cluster version although the cluster has other members"),
        ),
        (0, "migrate takes no arguments: give the directory with --data-dir"),
        _later("migrate", "migrate"),
        f"  {PROG} migrate --data-dir /var/lib/etcd --target etcdfast\n"
        f"  {PROG} migrate --data-dir m1.etcdfast --target etcd --output-dir m1.etcd\n",
    ),
    Command(
        ("defrag",),
        "",
        "Does nothing: etcdfast's store gives space back by itself",
        "",
        (Flag("data-dir", "string", "", "data directory"),),
        None,
        _later("little", "defrag"),
    ),
    Command(("version",), "", "Prints the version of etcdfastutl", "", (), None, _later("little", "version")),
    Command(
        ("db", "dump"),
        " <filename>",
        "Lists buckets and items of a database file",
        "List the buckets of a database file, or with --bucket the items of one, read for a person.",
        (
            Flag("bucket", "string", "", "list the items of this bucket"),
            Flag("limit", "uint", 0, "list at most that many items (default: all)"),
        ),
        (1, "db dump requires exactly one argument"),
        _later("dump", "db_dump"),
        f"  {PROG} db dump backup.db\n  {PROG} db dump backup.db --bucket members\n",
    ),
    Command(
        ("db", "check"),
        " <filename>",
        "Checks every page of a database file",
        "",
        (),
        (1, "db check requires exactly one argument"),
        _later("dump", "db_check"),
    ),
)
_ABOUT = {"snapshot": "Saves, restores and inspects snapshots of members", "db": "Looks into database files"}


def find(words):
    """(Command, words behind its own), or (None, group path) when the words only begin commands.

    Errors: UtlError for words that begin none.
    """
    path = []
    rest = list(words)
    candidates = COMMANDS
    while True:
        # Flags may come first: etcd's tools take `-w json snapshot status f`.
        at = _first_plain(rest)
        if at is None:
            return None, tuple(path), rest
        word = rest[at]
        candidates = [c for c in candidates if c.path[len(path) : len(path) + 1] == (word,)]
        if not candidates:
            where = " ".join((PROG, *path))
            raise UtlError(f'unknown command "{word}" for "{where}"\nRun \'{where} --help\' for usage.')
        path.append(rest.pop(at))
        if candidates[0].path == tuple(path):
            return candidates[0], tuple(path), rest


def _first_plain(words):
    skip = False
    for at, word in enumerate(words):
        if skip:
            skip = False
        elif word in ("-w", "--write-out"):
            skip = True
        elif not word.startswith("-"):
            return at
    return None


def run(words):
    """Carry out a command line; returns the exit status. Errors: UtlError, OSError."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    command, path, rest = find(words)
    if command is None:
        unknown = next((w for w in rest if w.startswith("-") and w not in ("-h", "--help", "-w", "--write-out")), None)
        if unknown is not None and not unknown.startswith(("-w", "--write-out")):
            raise UtlError(f"unknown flag: {unknown}")
        print(flags.group_help(PROG, path, COMMANDS, _ABOUT), end="")
        return 0
    try:
        options, arguments = flags.parse(command, rest)
        flags.check_arguments(command, arguments)
        return command.run(options, arguments) or 0
    except flags.HelpWanted:
        print(flags.full_help(PROG, command), end="")
        return 0
    except UsageError:
        print(flags.usage(PROG, command), file=sys.stderr)
        raise


def main(words=None):
    """Entry point of the console command; returns the exit status."""
    from etcdfast.formats.bbolt import BoltError

    try:
        status = run(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return status
    except UtlError as err:
        print(f"Error: {err}", file=sys.stderr)
        return err.code
    except BoltError as err:
        print(f"Error: snapshot file integrity check failed: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer goes nowhere
        return 1
    except OSError as err:
        named = f"open {err.filename}: " if err.filename else ""
        print(f"Error: {named}{(err.strerror or str(err)).lower()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Error: interrupted", file=sys.stderr)
        return INTERRUPTED
