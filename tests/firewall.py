"""A machine behind a firewall of its own: a network namespace with packet filters, joined to this one by a cable."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

OUTSIDE, INSIDE = "10.213.77.1", "10.213.77.2"
STATEFUL = (
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "-A INPUT -p tcp -j ACCEPT",
    "-P INPUT DROP",
)
"""As a cloud machine's with one open port: UDP comes in only where it went out before."""
NO_UDP = ("-A INPUT -p udp ! -i lo -j DROP", "-A OUTPUT -p udp ! -o lo -j DROP")
"""As a tunnel that carries TCP alone."""


@dataclass(frozen=True)
class Namespace:
    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """In front of a command that is to run inside."""
        return ["ip", "netns", "exec", self.name]


@contextlib.contextmanager
def behind_firewall(rules: tuple[str, ...]) -> Iterator[Namespace]:
    """A namespace with these iptables rules; skips, and says why, where none can be made."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("iptables"):
        pytest.skip("the firewall needs root, ip and iptables (apt-get install iproute2 iptables)")
    tail = secrets.token_hex(3)
    inside = Namespace(f"pp-{tail}", INSIDE)
    try:
        try:
            _run(f"ip netns add {inside.name}")
            _run(f"ip link add ppo-{tail} type veth peer name ppi-{tail} netns {inside.name}")
            _run(f"ip addr add {OUTSIDE}/30 dev ppo-{tail}")
            _run(f"ip link set ppo-{tail} up")
            for command in (f"addr add {INSIDE}/30 dev ppi-{tail}", f"link set ppi-{tail} up", "link set lo up"):
                _run(f"ip -n {inside.name} {command}")
            for rule in rules:
                _run(f"ip netns exec {inside.name} iptables {rule}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no firewall can be set up here: {error.cmd} says {error.stderr.strip()}")
        yield inside
    finally:
        subprocess.run(["ip", "link", "del", f"ppo-{tail}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", inside.name], capture_output=True)


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True)
