"""snapshot save: from a real etcd, from etcdfast, and from members that do not keep their word."""

import hashlib
import os
from concurrent import futures

import grpc
import pytest

from etcdfast.api import rpcs
from tests.harness import boltread, etcdutl, pb
from tests.harness.ports import free_port
from tests.harness.rpc import Client
from tests.harness.security import ClientSecurity
from tests.harness.servers import EtcdServer, target_server
from tests.utl.tools import etcdctl, everything, fill, utl


def test_of_a_real_etcd(tmp_path):
    path = tmp_path / "snap.db"
    with EtcdServer(directory=tmp_path / "etcd") as etcd:
        fill(etcd.endpoint)
        done = utl("snapshot", "save", "--endpoints", etcd.endpoint, path)
        theirs = tmp_path / "theirs.db"
        etcdctl(etcd.endpoint, "snapshot", "save", theirs)
    assert (done.code, done.out) == (0, f"Snapshot saved at {path}\n"), done.err
    assert os.listdir(tmp_path).count("snap.db.part") == 0
    assert boltread.buckets(path) == boltread.buckets(theirs)
    assert etcdutl.status(path)["hash"] == etcdutl.status(theirs)["hash"]
    real = etcdutl.run("snapshot", "restore", path, "--data-dir", tmp_path / "restored")
    assert real.returncode == 0, real.stderr


def test_of_the_server_under_test_into_a_real_etcd(tmp_path):
    path = tmp_path / "snap.db"
    with target_server(directory=tmp_path / "target") as server:
        fill(server.endpoint, users=False)
        expected = everything(server.endpoint)
        done = utl("snapshot", "save", "--endpoints", f"http://{server.endpoint}", path)
        with Client(server.endpoint) as client:
            hashed = client.call("HashKV", pb.HashKVRequest()).message
    assert done.code == 0, done.err
    etcdutl.status(path)
    restored = utl("snapshot", "restore", path, "--data-dir", tmp_path / "etcd" / "data")
    assert restored.code == 0, restored.err
    with EtcdServer(directory=tmp_path / "etcd") as etcd:
        assert everything(etcd.endpoint) == expected
        with Client(etcd.endpoint) as client:
            reply = client.call("HashKV", pb.HashKVRequest(revision=hashed.header.revision)).message
        assert (reply.hash, reply.compact_revision) == (hashed.hash, hashed.compact_revision)


def test_with_a_user(tmp_path):
    with EtcdServer(directory=tmp_path / "etcd") as etcd:
        etcdctl(etcd.endpoint, "user", "add", "root:secret")
        etcdctl(etcd.endpoint, "user", "grant-role", "root", "root")
        etcdctl(etcd.endpoint, "auth", "enable")
        arguments = ("snapshot", "save", "--endpoints", etcd.endpoint, tmp_path / "snap.db")
        refused = utl(*arguments)
        assert refused.code != 0 and "user name is empty" in refused.err
        wrong = utl(*arguments, "--user", "root:wrong")
        assert wrong.code == 2 and "authentication failed, invalid user ID or password" in wrong.err
        assert not (tmp_path / "snap.db").exists()
        assert utl(*arguments, "--user", "root:secret").code == 0
        assert utl(*arguments, "--user", "root", "--password", "secret").code == 0


def test_over_tls(tmp_path):
    security = ClientSecurity(tmp_path / "certs")
    port = free_port()
    etcd = EtcdServer(directory=tmp_path / "etcd", port=port, flags=security.server_flags(port))
    try:
        etcd.spawn()
        flags = security.client_flags()
        arguments = ("snapshot", "save", "--endpoints", etcd.endpoint, tmp_path / "snap.db")
        done = utl(*arguments, *flags, "--dial-timeout", "20s")
        assert done.code == 0, done.err
        assert utl(*arguments, *flags[2:], "--insecure-skip-tls-verify").code == 0
        refused = utl(*arguments, *flags[2:], "--dial-timeout", "300ms")  # the system knows no such authority
        assert refused.code != 0 and "is it http or https?" in refused.err, refused.err
        half = utl(*arguments, *flags[:4])
        assert half.code != 0 and "--cert and --key go together" in half.err
        missing = utl(*arguments, "--cacert", tmp_path / "none.crt")
        assert missing.code != 0 and "none.crt: No such file or directory" in missing.err
    finally:
        etcd.close()


class Liar(grpc.GenericRpcHandler):
    """A member whose Snapshot stream is given."""

    def __init__(self, messages, end=None):
        self._messages = messages
        self._end = end

    def service(self, details):
        if not details.method.endswith("/Snapshot"):
            return None

        def serve(request, context):
            yield from self._messages
            if self._end:
                context.abort(*self._end)

        message = rpcs.message_class(rpcs.BY_PATH["/etcdserverpb.Maintenance/Snapshot"].response)
        return grpc.unary_stream_rpc_method_handler(
            serve, request_deserializer=None, response_serializer=message.SerializeToString
        )


DATA = bytes(range(256)) * 64
SUM = hashlib.sha256(DATA).digest()


def _messages(*pieces):
    left = sum(map(len, pieces[:-1]))
    out = []
    for piece in pieces:
        left = max(0, left - len(piece))
        out.append(pb.SnapshotResponse(remaining_bytes=left, blob=piece))
    return out


@pytest.mark.parametrize(
    "messages, end, words",
    [
        (_messages(DATA, SUM), None, None),
        (_messages(DATA[:100], DATA[100:] + SUM[:5], SUM[5:]), None, None),
        (_messages(DATA, bytes(32)), None, "expected sha256"),
        (_messages(DATA[:-512], SUM), None, "expected sha256"),
        (_messages(DATA[:512], DATA[512:])[:1], None, "ended early"),
        (_messages(DATA), None, "ended early"),
        ([], None, "ended early"),
        (_messages(DATA), (grpc.StatusCode.UNAVAILABLE, "member is stopping"), "member is stopping"),
    ],
    ids=["whole", "cut anywhere", "wrong sum", "too short", "no end", "no sum", "nothing", "broken off"],
)
def test_of_a_member_that_does_not_keep_its_word(messages, end, words, tmp_path):
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Liar(messages, end)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = utl("snapshot", "save", "--endpoints", f"127.0.0.1:{port}", tmp_path / "snap.db")
    finally:
        server.stop(0).wait()
    if words is None:
        assert done.code == 0, done.err
        assert (tmp_path / "snap.db").read_bytes() == DATA + SUM
    else:
        assert done.code == 5 and words in done.err and len(done.err.strip().splitlines()) == 1
        assert os.listdir(tmp_path) == []


def test_what_is_typed_wrong(tmp_path):
    done = utl("snapshot", "save")
    assert (done.code, done.err) == (128, "Error: snapshot save expects one argument\n")
    done = utl("snapshot", "save", "--endpoints", "a:1,b:1", "f")
    assert done.code == 5 and "one selected node, not multiple [a:1 b:1]" in done.err
    done = utl("snapshot", "save", "--endpoints", "127.0.0.1:1", "--dial-timeout", "300ms", tmp_path / "f")
    assert done.code == 2 and "context deadline exceeded: no connection to 127.0.0.1:1" in done.err
    with EtcdServer(directory=tmp_path / "etcd") as etcd:
        done = utl("snapshot", "save", "--endpoints", etcd.endpoint, "/nonexistent/f")
    part = "/nonexistent/f.part"
    assert (done.code, done.err) == (5, f"Error: could not open {part} (open {part}: no such file or directory)\n")
