"""A capsule with a network of its own, connected to the outside world."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import claims
from .capsule import Capsule
from .netns import NamedNetns
from .probe import Prober
from .roots import engine_root
from .store import LabError
from .wan import Wan


class Host(Capsule):
    """A small machine on a `Wan`, by ``eth0`` (for the first: 198.51.100.1, 2001:db8:ffff::1).

    At `boot` it is like a freshly installed machine: forwarding off, no rules, no links but lo and eth0.
    `reboot` and `halt` lose every process, mount, link and rule; the disk stays.
    """

    def __init__(
        self,
        root: Path | None = None,
        wan: Wan | None = None,
        *,
        advertised: bool = False,
        binds: Mapping[str, Path] | None = None,
    ) -> None:
        """`root` defaults to the default engine's; without a `wan` it makes one and closes it, too.

        If `advertised`, its IPv6 default route is from a router advertisement (it has it when
        `boot` returns), and is lost if the host stops listening to them; see `Wan.advertise`.
        """
        self._advertised = advertised
        self._own_wan = wan is None
        self.wan = wan or Wan()
        self.number = self.wan.attach()
        super().__init__(root or engine_root(), kind="h", binds=binds)
        self.netns = NamedNetns(self.name)
        self._net = self.netns
        self._claim.record.netns.append(self.name)
        self._claim.save()
        self.write("/etc/resolv.conf", f"nameserver {Wan.FAR_V4}\n")  # a test may start a name server there

    def __enter__(self) -> Host:
        return self

    @property
    def v4(self) -> str:
        """Return its address on the wan."""
        return self.wan.host_v4(self.number)

    @property
    def v6(self) -> str:
        """Return its IPv6 address on the wan."""
        return self.wan.host_v6(self.number)

    @property
    def probe(self) -> Prober:
        """Return probes from the host itself."""
        return self.netns.probe

    def boot(self) -> None:
        """Boot it, network first."""
        if not self.running:
            self.netns.make()
            self.wan.wire(self.number, self.netns, advertised=self._advertised)
        super().boot()
        if self._advertised:
            self._hear_router()

    def _hear_router(self, timeout: float = 5) -> None:
        end = time.monotonic() + timeout
        while not self.netns.run(["ip", "-6", "route", "show", "default"]).stdout:
            if time.monotonic() > end:
                raise LabError(f"{self.name} does not take router advertisements")
            self.wan.advertise()
            time.sleep(0.02)

    def halt(self) -> None:
        """Halt it like a power failure: processes, mounts, links and rules are lost when this returns."""
        super().halt()
        self.wan.unplug(self.number)
        claims.delete_netns(self.name)

    def reboot(self) -> None:
        """Halt and boot. Nothing is started: the caller starts a dockerd that ran before."""
        self.halt()
        self.boot()

    def close(self) -> None:
        """Remove everything, and the wan if this host made it."""
        super().close()
        if self._own_wan:
            self.wan.close()

    def run_outside(
        self, argv: Sequence[str], *, check: bool = True, input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of *this machine's* file system in the host's network; see `Netns.run`."""
        return self.netns.run(argv, check=check, input=input, timeout=timeout)

    def popen_outside(self, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program of this machine's file system in the host's network; see `Netns.popen`."""
        return self.netns.popen(argv, **more)
