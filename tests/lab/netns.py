"""Run programs of this machine in network namespaces, and configure these with `ip`."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .store import LabError, call

if TYPE_CHECKING:
    from .probe import Prober

#: For `Netns.sysctl`: the namespace forwards packets of both families.
FORWARDING = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}


class Netns:
    """A network namespace, by the path of its file (say ``/run/netns/NAME``).

    It may be a container's: `Engine.netns` gives that. Programs run here are those of *this*
    machine's file system; only their network is another one.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def prefix(self) -> list[str]:
        """Return the words to put before a command to run it in this namespace."""
        return ["nsenter", f"--net={self.path}", "--"]

    @property
    def probe(self) -> Prober:
        """Return probes that start in this namespace."""
        from .probe import Prober

        return Prober(self.path)

    def run(
        self, argv: Sequence[str], *, check: bool = True, input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program and wait; LabError with its output if it fails and `check` is true."""
        return finish([*self.prefix, *argv], check=check, input=input, timeout=timeout, shown=argv)

    def popen(self, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program (keywords as of `subprocess.Popen`); ending it is the caller's work."""
        return subprocess.Popen([*self.prefix, *argv], **more)

    def ip(self, *lines: str) -> None:
        """Run `ip` commands, one per string, such as ``"link set lo up"``."""
        self.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")

    def sysctl(self, settings: Mapping[str, int | str]) -> None:
        """Set ``net/…`` sysctls, given as paths below /proc/sys."""
        wrong = [name for name in settings if not name.startswith("net/")]
        if wrong:
            raise LabError(f"not a sysctl of a network namespace: {wrong}")
        lines = "".join(f"/proc/sys/{name} {value}\n" for name, value in settings.items())
        self.run(["sh", "-ec", 'while read -r name value; do echo "$value" >"$name"; done'], input=lines)


class NamedNetns(Netns):
    """A namespace of the lab's own with a name, as `ip netns list` shows it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"/run/netns/{name}")
        self.name = name

    def make(self) -> None:
        """Create it like the network of a freshly booted machine: loopback, and no forwarding."""
        call(["ip", "netns", "add", self.name])
        fresh: dict[str, int | str] = {
            # otherwise IPv4 settings are copies of this machine's
            "net/ipv4/conf/all/forwarding": 0,
            "net/ipv4/conf/default/forwarding": 0,
            "net/ipv6/conf/all/forwarding": 0,
            "net/ipv6/conf/default/forwarding": 0,
            "net/ipv4/conf/all/rp_filter": 0,
            "net/ipv4/conf/default/rp_filter": 2,  # as systemd sets it
            # No duplicate address detection: addresses work at once.
            "net/ipv6/conf/all/accept_dad": 0,
            "net/ipv6/conf/default/accept_dad": 0,
            # Otherwise only the first six refusals by ICMP are reported, and further ones look like silence.
            "net/ipv4/icmp_ratelimit": 0,
            "net/ipv6/icmp/ratelimit": 0,
        }
        self.sysctl(fresh)
        self.ip("link set lo up")


def finish(
    argv: Sequence[str], *, check: bool, input: str | None, timeout: float, shown: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call subprocess.run as the lab needs it: text, captured, errors as LabError with the output."""
    shown = shown or argv
    try:
        done = subprocess.run(
            argv,
            check=False,
            input=input,
            timeout=timeout,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL if input is None else None,
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{' '.join(shown)}: not done after {timeout:g} s") from late
    if check and done.returncode:
        raise LabError(f"{' '.join(shown)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done
