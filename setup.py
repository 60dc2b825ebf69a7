"""Build of the Cython extensions and the protobuf modules.

`EXTENSIONS` is the one table of extension modules. `ETCDFAST_BUILD` picks the kind of build:
release (default), debug (bounds, initialisation, assertions) or asan (the same under AddressSanitizer: `make asan`).
`ETCDFAST_ONLY=name,name` limits a build to some rows while working on one of them; `none` builds no
extension (pip installing a checkout whose extensions are built in place would compile them all again).
A failed extension, a Cython warning and a Cython performance hint all fail the build.

Linked from the system: libnghttp2, libssl and libcrypto (OpenSSL 3.0 or newer, whose ABI is one for all of 3.x). A
wheel for machines that may lack them has to carry them: `auditwheel repair` does.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Errors, Options
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
HEADERS = [str(p) for p in Path("etcdfast/_ext").glob("*.h")]

# module name below etcdfast._ext -> libraries it links with
EXTENSIONS = {
    "proc": [],  # what a process asks of the kernel about itself: death signal, name, heap
    "crc32c": [],  # CRC-32C, SSE4.2 with a portable fall-back
    "wire": [],  # protobuf scanning and writing without objects
    "meters": [],  # shared figures of a process for /metrics
    "profiler": ["dl"],  # samples of a process for /debug/profile
    "ring": [],  # SPSC shared-memory byte ring, doorbells, status page
    "tokenpage": [],  # auth tokens in shared memory
    "authtable": [],  # users' merged permissions
    "boltread": [],  # bbolt files: pages checked and read
    "boltwrite": [],  # bbolt files in one pass
    "walrec": [],  # WAL frames: encode, scan, verify
    "walscan": [],  # whole logs as rows of entries, for start-up
    "walops": [],  # the system calls of the WAL, and planned faults for tests
    "walfiles": ["pthread"],  # the log's directory: next segment ahead, release, purge
    "walio": ["pthread"],  # WAL segment writer: disk thread, group commit
    "raftlog": [],  # in-memory raft log of the consensus process
    "peerwire": [],  # raft messages between members, HTTP chunks: bytes only
    "peerlink": [],  # the streams between this member and one other
    "peerbench": [],  # micro benchmark of those
    "peerset": [],  # the links to all other members
    "consensusturn": ["pthread"],  # the turn of the consensus process
    "consensusloop": ["pthread"],  # the turn for Python
    "revindex": [],  # ordered revision index in C memory
    "revface": [],  # the revision index for Python
    "requests": [],  # request checks at the API: sizes, keys, txn shape
    "h2request": ["nghttp2"],  # gRPC messages out of DATA frames
    "h2stream": ["nghttp2"],  # HTTP/2 streams: windows, request bytes, answers going out
    "http2": ["nghttp2"],  # nghttp2 sessions: bytes in, events and bytes out
    "tlsconn": ["ssl", "crypto", "pthread"],  # TLS in the place of recv and send
    "tlscontext": ["ssl", "crypto", "pthread"],  # certificates and rules, re-read; TLS sockets for Python
    "frontconn": ["nghttp2"],  # sockets of a frontend: accept, read, write, close
    "frontpost": ["nghttp2"],  # requests into the rings, in order
    "frontauth": ["nghttp2"],  # whose call it is: tokens, client certificates
    "frontevents": ["nghttp2"],  # watch events out of a ring to the many who watch
    "fronthttp": ["nghttp2"],  # HTTP/1.1 and plain HTTP/2 requests of a frontend, for Python
    "jsonwire": [],  # JSON of the gateway to and from protobuf wire bytes
    "frontloop": ["nghttp2"],  # epoll loop of a frontend process
    "mvcc": [],  # key-value state of apply: changes to index and RocksDB batch
    "rangeread": [],  # KV.Range: sorted, filtered, in slices
    "kvops": [],  # Put, DeleteRange, Txn on the MVCC state
    "watchtree": [],  # which watched ranges a key lies in
    "watchhistory": [],  # events: their encoding, and reading past ones
    "watchface": [],  # the two for Python
    "leasetable": [],  # leases in C memory: rows, queues, keys that hang on them
    "leaseops": [],  # lease entries and calls, and what falls due
    "keyorder": [],  # who was created first below a prefix: locks and elections
    "longread": [],  # answers larger than a ring record: slices, credit
    "longanswers": [],  # those under way: turns, pins, limits
    "authgate": [],  # identities of requests: who is refused, and why
    "leaseclock": [],  # what time does to leases: expiry, checkpoints, keep-alive
    "outbox": [],  # what apply sends, and its sleep
    "watchcore": [],  # watches: groups, delivery, those who lag
    "watchhub": [],  # watches: requests, changes, history, progress
    "hubface": [],  # the watch hub for Python
    "applyloop": [],  # the turn of the apply process: rings in, answers out
    "servicegate": [],  # the loop as locks and elections see it
    "loadh2": ["nghttp2"],  # HTTP/2 client of the load generator
    "loadstm": [],  # software transactions of the load generator
    "loadgen": ["nghttp2"],  # HTTP/2 load generator of etcdfast-bench
}

KIND = os.environ.get("ETCDFAST_BUILD", "release")
KINDS = {
    "release": (["-O3", "-fno-plt", "-fno-semantic-interposition"], []),
    "debug": (["-O1", "-g3", "-UNDEBUG"], []),
    "asan": (["-O1", "-g3", "-UNDEBUG", "-fsanitize=address,undefined"], ["-fsanitize=address,undefined"]),
}
if KIND not in KINDS:
    raise SystemExit(f"ETCDFAST_BUILD={KIND}: expected one of {', '.join(KINDS)}")
COMPILE_ARGS, LINK_ARGS = KINDS[KIND]
CHECKED = KIND != "release"

# nonecheck stays off in every build: it needs the interpreter's lock at each attribute of `self`, which the
# nogil methods do not hold (Cython refuses `self.x += 1` there). None is kept out at the door instead, in
# every build: a function called from Python takes no None for an extension type unless that is its default.
DIRECTIVES = {
    "language_level": "3",
    "boundscheck": CHECKED,
    "wraparound": False,
    "initializedcheck": CHECKED,
    "nonecheck": False,
    "allow_none_for_extension_args": False,
    "overflowcheck": False,
    "cdivision": True,
    "embedsignature": True,
}


def _hint_is_error(position, message, env=None):
    raise Errors.CompileError(position, f"performance hint: {message}")


# cythonize compiles in child processes; only forked ones inherit what is set here.
multiprocessing.set_start_method("fork", force=True)
Options.warning_errors = True
Errors.performance_hint = _hint_is_error


def extension_modules():
    only = set(filter(None, os.environ.get("ETCDFAST_ONLY", "").split(",")))
    if only == {"none"}:
        return []
    unknown = only - set(EXTENSIONS)
    if unknown:
        raise SystemExit(f"ETCDFAST_ONLY names no extension: {', '.join(sorted(unknown))}")
    modules = [
        Extension(
            f"etcdfast._ext.{name}",
            [f"etcdfast/_ext/{name}.pyx"],
            libraries=libraries,
            include_dirs=["etcdfast/_ext"],
            depends=HEADERS,
            extra_compile_args=["-std=gnu11", "-Wall", "-Wno-unused-function", *COMPILE_ARGS],
            extra_link_args=LINK_ARGS,
        )
        for name, libraries in EXTENSIONS.items()
        if not only or name in only
    ]
    return cythonize(
        modules,
        compiler_directives=DIRECTIVES,
        build_dir=f"build/cython-{KIND}",
        nthreads=os.cpu_count() if len(modules) > 1 else 0,
        annotate=os.environ.get("ETCDFAST_ANNOTATE") == "1",
    )


def generate_protobuf_modules():
    """Compile protos/ into etcdfast/api/pb (message classes only; the client stubs are ours)."""
    protos_dir = ROOT / "protos"
    protos = sorted(protos_dir.rglob("*.proto"))
    out = ROOT / "etcdfast" / "api" / "pb"
    wanted = [out / f"{proto.stem}_pb2.py" for proto in protos]
    newest = max(p.stat().st_mtime for p in (*protos, Path(__file__)))
    if all(made.exists() and made.stat().st_mtime >= newest for made in wanted):
        return
    from grpc_tools import protoc

    # Made aside and moved in file by file: a process that runs from this tree never meets half a module.
    out.mkdir(exist_ok=True)
    (out / "__init__.py").touch()
    with tempfile.TemporaryDirectory(dir=out) as made_dir:
        status = protoc.main(
            ["protoc", f"-I{protos_dir}", f"--python_out={made_dir}", f"--pyi_out={made_dir}", *map(str, protos)]
        )
        if status:
            raise SystemExit(f"protoc failed with status {status}")
        for made in (Path(made_dir) / "etcdfast" / "api" / "pb").iterdir():
            if made.suffix == ".py":
                text = made.read_text()
                default_pool, own_pool = "_descriptor_pool.Default()", "_pbpool.POOL"
                if text.count(default_pool) != 1:
                    raise SystemExit(f"{made.name}: the shape of protoc's output changed, cannot set its pool")
                made.write_text(
                    text.replace("from google.protobuf import descriptor_pool as _descriptor_pool\n", "")
                    .replace("# @@protoc_insertion_point(imports)", "from etcdfast.api import pbpool as _pbpool", 1)
                    .replace(default_pool, own_pool)
                )
            made.replace(out / made.name)


class BuildPy(build_py):
    def run(self):
        generate_protobuf_modules()
        super().run()


generate_protobuf_modules()
setup(ext_modules=extension_modules(), cmdclass={"build_py": BuildPy})
