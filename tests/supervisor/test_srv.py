"""--discovery-srv against a name server of our own."""

import socket
import threading

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from etcdfast.config.checks import ConfigError
from etcdfast.config.load import load
from etcdfast.log import Quiet
from etcdfast.supervisor.srv import find_cluster


@pytest.fixture
def resolver():
    records = {}
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def answer():
        while True:
            data, who = server.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            reply = dns.message.make_response(query)
            name = query.question[0].name.to_text(omit_final_dot=True)
            if name in records:
                reply.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "SRV", *records[name])]
            else:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            server.sendto(reply.to_wire(), who)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    asking = dns.resolver.Resolver(configure=False)
    asking.nameservers, asking.port, asking.lifetime = ["127.0.0.1"], server.getsockname()[1], 5
    asking.records = records
    yield asking
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", server.getsockname())
    thread.join()
    server.close()


def config(*more):
    own = ["--name=me", "--discovery-srv=example.test", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]
    return load([*own, *more], {}, Quiet)


def test_members_come_from_both_services(resolver):
    resolver.records["_etcd-server-ssl._tcp.example.test"] = ["0 0 2380 127.0.0.2."]
    resolver.records["_etcd-server._tcp.example.test"] = ["2 0 2380 127.0.0.3.", "1 0 2380 localhost."]
    assert find_cluster(config(), resolver) == (
        "0=https://127.0.0.2:2380,me=http://localhost:2380,1=http://127.0.0.3:2380"
    )


def test_a_suffix_of_the_service(resolver):
    resolver.records["_etcd-server-two._tcp.example.test"] = ["0 0 2380 127.0.0.1."]
    assert find_cluster(config("--discovery-srv-name=two"), resolver) == "me=http://127.0.0.1:2380"


def test_nothing_found_names_both_services(resolver):
    with pytest.raises(ConfigError) as caught:
        find_cluster(config(), resolver)
    text = str(caught.value)
    assert text.startswith("error setting up initial cluster: error querying DNS SRV records for _etcd-server-ssl ")
    assert "; error querying DNS SRV records for _etcd-server " in text


def test_a_cluster_without_this_member_is_refused(resolver):
    resolver.records["_etcd-server._tcp.example.test"] = ["0 0 2380 127.0.0.9."]
    with pytest.raises(ConfigError, match="cannot find local etcd member 'me' in SRV records"):
        find_cluster(config(), resolver)


def test_a_scheme_that_does_not_match_is_told(resolver):
    resolver.records["_etcd-server-ssl._tcp.example.test"] = ["0 0 2380 127.0.0.1."]
    with pytest.raises(ConfigError, match="scheme mismatch"):
        find_cluster(config(), resolver)
