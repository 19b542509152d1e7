"""
Machines of a test's own: network namespaces around a hub, whose cables can be pulled.

Needs root and iproute2. No address is seen outside: the hub, where servers listen, is a namespace too, and a thread
reaches it by entering it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

#: Where servers in the hub listen.
HUB = "10.213.0.1"
#: See setns(2).
_CLONE_NEWNET = 0x40000000


def networks_can_be_made() -> bool:
    """Return whether this process may make network namespaces."""
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "ss", "nsenter")))


@dataclass(frozen=True)
class Namespace:
    """A network namespace."""

    name: str

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What to put before a command so that it runs inside; `ip netns exec` would hide the cgroups from it."""
        return "nsenter", f"--net={self._path}"

    @property
    def _path(self) -> Path:
        return Path("/run/netns", self.name)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and what it starts, be inside; sockets stay where they were opened."""
        with Path("/proc/thread-self/ns/net").open() as outside, self._path.open() as inside:
            _enter(inside.fileno())
            try:
                yield
            finally:
                _enter(outside.fileno())


@dataclass(frozen=True)
class Network:
    """A hub and its hosts, which reach nothing but the hub and each other."""

    hub: Namespace
    hosts: dict[str, Namespace]

    @contextlib.contextmanager
    def cut_off(self, host: str) -> Iterator[None]:
        """Pull a host's cable, and put it back at the end of the block."""
        _ip("-n", self.hub.name, "link", "set", host, "down")
        try:
            yield
        finally:
            _ip("-n", self.hub.name, "link", "set", host, "up")

    def forget(self, host: str) -> None:
        """Destroy the hub's end of all connections with a host; one that is cut off does not learn of it."""
        address = _address(list(self.hosts).index(host))
        subprocess.run([*self.hub.wrapper, "ss", "-K", "-t", "dst", address], check=True, capture_output=True)


@contextlib.contextmanager
def make_network(*hosts: str) -> Iterator[Network]:
    """Give a network of hosts; nothing is left of it at the end."""
    prefix = f"morpheo-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        hub = stack.enter_context(make_namespace(f"{prefix}-hub"))
        _ip("-n", hub.name, "link", "add", "hub", "type", "bridge")
        _ip("-n", hub.name, "address", "add", f"{HUB}/24", "dev", "hub")
        _ip("-n", hub.name, "link", "set", "hub", "up")
        network = Network(hub, {name: stack.enter_context(make_namespace(f"{prefix}-{name}")) for name in hosts})
        for number, (name, host) in enumerate(network.hosts.items()):
            _ip("-n", hub.name, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", hub.name, "link", "set", name, "master", "hub", "up")
            _ip("-n", host.name, "address", "add", f"{_address(number)}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
        yield network


@contextlib.contextmanager
def make_namespace(name: str) -> Iterator[Namespace]:
    """Give a namespace in which only loopback is; nothing is left of it at the end."""
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield Namespace(name)
    finally:
        _ip("netns", "delete", name)  # and with it all its links, when its last process has ended


def _address(number: int) -> str:
    return f"10.213.0.{number + 2}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
