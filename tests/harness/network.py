"""The network between the members of a cluster under test, and the faults of its links.

Three kinds behind one face: plain loopback (no faults), network namespaces with veth and a bridge (root
only; every member has an address of its own), and a TCP proxy before every peer URL (anybody may, no
client is cut off). Nothing is ever sent beyond this machine.

A cut is silent, as a broken switch is: packets vanish and no side is told. In a namespace the neighbour
table does that: all members know each other by permanent entries, and a cut gives the sender a hardware
address that nobody has. It works for one direction, at once, for connections that exist, and without any
packet filter.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from .claims import claim
from .ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
PREFIX = "efnet"
NOBODY = "02:ef:ff:ff:ff:ff"
HOST = 254  # the last byte of the bridge's own address
MEMBERS_MAX = 40


class Network(Protocol):
    """Members are numbers from 1 on. `faults`: whether `cut` and `slow` do anything."""

    faults: bool

    def join(self, member: int) -> None:
        """Make room for a member; called once, before it starts."""

    def host(self, member: int) -> str:
        """The address it listens on."""

    def prefix(self, member: int) -> list[str]:
        """What goes before its command."""

    def advertised(self, member: int, peer_port: int) -> str:
        """host:port at which the others find the peer port of this member."""

    def cut(self, sender: int, receiver: int) -> None:
        """Nothing of `sender` reaches `receiver` any more; the other way goes on."""

    def slow(self, member: int) -> None:
        """What this member sends goes slowly."""

    def heal(self) -> None:
        """End all faults."""

    def close(self) -> None: ...


class Loopback:
    faults = False

    def join(self, member: int) -> None:
        pass

    def host(self, member: int) -> str:
        return "127.0.0.1"

    def prefix(self, member: int) -> list[str]:
        return []

    def advertised(self, member: int, peer_port: int) -> str:
        return f"127.0.0.1:{peer_port}"

    def cut(self, sender: int, receiver: int) -> None:
        raise NotImplementedError("loopback has no faults")

    def slow(self, member: int) -> None:
        raise NotImplementedError("loopback has no faults")

    def heal(self) -> None:
        pass

    def close(self) -> None:
        pass


class Namespaces:
    """A namespace per member below one bridge; addresses of 198.18.0.0/15, which is for tests (RFC 2544)."""

    faults = True
    SLOW_RATE = "1mbit"

    _made = 0

    def __init__(self) -> None:
        _sweep()
        Namespaces._made += 1
        self._subnet, self._claim = _free_subnet(os.getpid() + Namespaces._made)
        self.name = f"{PREFIX}{os.getpid()}-{self._subnet.replace('.', '-')}"
        self._bridge = f"ef{os.getpid():x}-{self._subnet.split('.')[2]}"  # names of devices have 15 bytes
        self._members: list[int] = []
        self._cuts: set[tuple[int, int]] = set()
        self._slow: set[int] = set()
        _open_networks.add(self)
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._subnet}.{HOST}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        except BaseException:
            self.close()
            raise

    def join(self, member: int) -> None:
        space, outer = self._space(member), self._outer(member)
        self._members.append(member)
        _ip("netns", "add", space)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "address", _mac(member), "netns", space)
        _ip("link", "set", outer, "master", self._bridge, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{self.host(member)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        for other in self._members[:-1]:
            self._neighbour(member, other, _mac(other))
            self._neighbour(other, member, _mac(member))

    def host(self, member: int) -> str:
        return f"{self._subnet}.{member}"

    def prefix(self, member: int) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._space(member)}"]

    def advertised(self, member: int, peer_port: int) -> str:
        return f"{self.host(member)}:{peer_port}"

    def cut(self, sender: int, receiver: int) -> None:
        self._neighbour(sender, receiver, NOBODY)
        self._cuts.add((sender, receiver))

    def slow(self, member: int) -> None:
        space = self._space(member)
        _tc(space, "qdisc", "replace", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1")
        _tc(space, "class", "replace", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate", self.SLOW_RATE)
        self._slow.add(member)

    def heal(self) -> None:
        for sender, receiver in self._cuts:
            self._neighbour(sender, receiver, _mac(receiver))
        for member in self._slow:
            _tc(self._space(member), "qdisc", "del", "dev", "eth0", "root")
        self._cuts.clear()
        self._slow.clear()

    def close(self) -> None:
        for member in self._members:
            # Both ends at once: a namespace goes some time after its name, and its devices with it.
            _ip("link", "del", self._outer(member), check=False)
            _ip("netns", "del", self._space(member), check=False)
        _ip("link", "del", self._bridge, check=False)
        self._members.clear()
        self._claim.close()
        _open_networks.discard(self)

    def _outer(self, member: int) -> str:
        return f"{self._bridge}.{member}"

    def _space(self, member: int) -> str:
        return f"{self.name}-{member}"

    def _neighbour(self, member: int, other: int, mac: str) -> None:
        where = ("dev", "eth0", "lladdr", mac, "nud", "permanent")
        _ip("-n", self._space(member), "neigh", "replace", self.host(other), *where)


class Proxies:
    """A process of ours (linkproxy.py) listens where each member says its peer port is, and passes bytes on."""

    faults = True

    def __init__(self) -> None:
        self._fronts: dict[int, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.linkproxy"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def join(self, member: int) -> None:
        pass

    def host(self, member: int) -> str:
        return "127.0.0.1"

    def prefix(self, member: int) -> list[str]:
        return []

    def advertised(self, member: int, peer_port: int) -> str:
        if member not in self._fronts:
            self._fronts[member] = free_port()
            self._tell("listen", member, self._fronts[member], peer_port)
        return f"127.0.0.1:{self._fronts[member]}"

    def name_member(self, member: int, id_: int) -> None:
        """The id by which this member calls itself towards the others: only then its connections are known."""
        self._tell("name", member, f"{id_:x}")

    def cut(self, sender: int, receiver: int) -> None:
        self._tell("cut", sender, receiver)

    def slow(self, member: int) -> None:
        self._tell("slow", member)

    def heal(self) -> None:
        self._tell("heal")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, *words: object) -> None:
        print(json.dumps(words), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        assert answer == "done", f"the link proxy says {answer!r} to {words}"


def faulty_network() -> Network:
    """Namespaces where this machine and user can have them, else the proxies."""
    return Namespaces() if can_have_namespaces() else Proxies()


_can: list[bool] = []


def can_have_namespaces() -> bool:
    """Tried once, by making a small network and taking it down."""
    if not _can:
        _can.append(_try())
    return _can[0]


def _try() -> bool:
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "tc", "nsenter")):
        return False
    try:
        network = Namespaces()
    except (OSError, subprocess.CalledProcessError):
        return False
    try:
        network.join(1)
        network.join(2)
        network.cut(1, 2)
        network.slow(1)
        network.heal()
    except subprocess.CalledProcessError:
        return False
    finally:
        network.close()
    return True


# -- inside -----------------------------------------------------------------------------------------

_open_networks: set[Namespaces] = set()


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
    if check and done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, ["ip", *words], done.stdout, done.stderr)
    return done.stdout


def _tc(space: str, *words: str) -> None:
    _ip("netns", "exec", space, "tc", *words)


def _mac(member: int) -> str:
    return f"02:ef:00:00:00:{member:02x}"


def _free_subnet(start: int) -> tuple[str, socket.socket]:
    """A network that no device here has, and the claim that keeps other test processes from it until it is closed."""
    used = _ip("-4", "route", "show")
    for number in range(start, start + 256):
        subnet = f"198.18.{number % 256}"
        if f"{subnet}.0/24" not in used and (claimed := claim("network", number % 256)) is not None:
            return subnet, claimed
    raise RuntimeError("no free network in 198.18.0.0/16")


def _sweep() -> None:
    """Take down what runs left behind that were killed: the process id is part of every name."""
    for name, pid in re.findall(rf"^({PREFIX}(\d+)-\S+)", _ip("netns", "list"), re.M):
        if not Path(f"/proc/{pid}").exists():
            _ip("netns", "del", name, check=False)
    for name, pid in re.findall(r"^\d+: (ef([0-9a-f]+)-\d+):", _ip("link", "show", "type", "bridge"), re.M):
        if not Path(f"/proc/{int(pid, 16)}").exists():
            _ip("link", "del", name, check=False)


@atexit.register
def _take_down() -> None:
    for network in list(_open_networks):
        network.close()
