"""--discovery-srv: the first members of a cluster from SRV records of a domain, as etcd finds them.

`_etcd-server-ssl._tcp.DOMAIN` names members of https, `_etcd-server._tcp.DOMAIN` those of http; whichever there are.
Which of them this member is follows from the address of its own peer URLs; the others are called 0, 1, ...
"""

import socket

from etcdfast import log
from etcdfast.config.checks import ConfigError
from etcdfast.config.values import split_host_port, split_url


def _address(host, port):
    """The one address that Go would take: IPv4 before IPv6. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][:2]


def _own_addresses(urls):
    own = {}
    for url in urls:
        scheme, rest = split_url(url)
        if scheme in ("http", "https"):
            try:
                own[_address(*split_host_port(rest))] = scheme
            except OSError as err:
                raise ConfigError(f"error setting up initial cluster: lookup {rest}: {err.strerror}") from None
    return own


def _lookup(resolver, service, domain):
    """[(host, port)], in the order of etcd's: by priority, then as they came."""
    answer = resolver.resolve(f"_{service}._tcp.{domain}", "SRV", search=False)
    records = sorted(answer, key=lambda record: record.priority)
    return [(record.target.to_text(omit_final_dot=True), record.port) for record in records]


def find_cluster(config, resolver=None):
    """`name=url,...` as --initial-cluster has it. Raises ConfigError when no record is found or none is this member."""
    import dns.exception
    import dns.resolver

    resolver = resolver or dns.resolver.get_default_resolver()
    suffix = f"-{config.discovery_srv_name}" if config.discovery_srv_name else ""
    own = _own_addresses(config.initial_advertise_peer_urls)
    found, failed = [], []
    others = 0
    for service, scheme in ((f"etcd-server-ssl{suffix}", "https"), (f"etcd-server{suffix}", "http")):
        try:
            records = _lookup(resolver, service, config.discovery_srv)
        except (dns.exception.DNSException, OSError) as err:
            reason = str(err).splitlines()[0] if str(err) else type(err).__name__
            failed.append(f"error querying DNS SRV records for _{service} {reason}")
            continue
        for host, port in records:
            try:
                address = _address(host, port)
            except OSError as err:
                failed.append(f"error querying DNS SRV records for _{service} lookup {host}: {err.strerror}")
                continue
            name = config.name if address in own else str(others)
            others += address not in own
            url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
            if own.get(address, scheme) != scheme:
                failed.append(f"bootstrap at {url} from DNS for {service} has scheme mismatch with expected peer")
                continue
            found.append(f"{name}={url}")
    if not found:
        raise ConfigError(f"error setting up initial cluster: {'; '.join(failed)}")
    log.info("found the cluster by SRV records", discovery_srv=config.discovery_srv, initial_cluster=",".join(found))
    if not any(pair.startswith(f"{config.name}=") for pair in found):
        raise ConfigError(
            f"error setting up initial cluster: cannot find local etcd member {config.name!r} in SRV records"
        )
    return ",".join(found)
