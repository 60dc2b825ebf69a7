"""Whether a certificate belongs to the address it came from, by etcd's rules for members.

A certificate without names says nothing, and is taken. One with IP addresses must hold the one it comes from; failing
that, or without any, one of its DNS names must belong to that address: a name of the reverse look-up, of which
"*.domain" takes every one below the domain, or a name that leads to the address.
"""

import asyncio
import ipaddress
import socket


class WrongAddress(Exception):
    """A certificate of somebody else; one line."""


def parse_ip(text):
    """The address, an IPv4 one written as IPv6 as what it is; None for anything else."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


async def check_address(host, ip_names, dns_names, lookup=None):
    """Errors: WrongAddress. `lookup` is for tests: an object with `names(host)` and `hosts(name)`."""
    if not ip_names and not dns_names:
        return
    own = parse_ip(host)
    if any(own is not None and parse_ip(ip) == own for ip in ip_names):
        return
    if not dns_names:
        raise WrongAddress(f"x509: certificate is valid for {', '.join(ip_names)}, not {host}")
    failure = None
    lookup = lookup or _Lookup
    try:
        names = await lookup.names(str(own or host))
    except OSError as err:
        names, failure = [], err
    if any(_is_named(name.rstrip("."), dns_names) for name in names):
        return
    for name in dns_names:
        if name.startswith("*."):
            continue
        try:
            if any(parse_ip(ip) == own for ip in await lookup.hosts(name)):
                return
        except (OSError, UnicodeError) as err:
            failure = err
    listed = " ".join(f'"{name}"' for name in dns_names)
    told = f" ({failure})" if failure else ""
    raise WrongAddress(f'tls: "{host}" does not match any of DNSNames [{listed}]{told}')


def _is_named(name, dns_names):
    return any(name.endswith(known[1:]) if known.startswith("*.") else name == known for known in dns_names)


class _Lookup:
    """The resolver of the system, which blocks a helper thread."""

    @staticmethod
    async def names(host):
        name, others, _ = await asyncio.get_running_loop().run_in_executor(None, socket.gethostbyaddr, host)
        return [name, *others]

    @staticmethod
    async def hosts(name):
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return [address[0] for _, _, _, _, address in found]
