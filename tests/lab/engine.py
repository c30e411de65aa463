"""A Docker engine on a host of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .daemon import Daemon
from .data import fill
from .host import Host
from .netns import Netns
from .probe import Servers
from .roots import DEFAULT, engine_root
from .store import LabError
from .wan import Wan


class Engine(Daemon):
    """dockerd, with its CLI, in a `Host`. Its docker commands and API calls are in `Daemon`.

        with Engine("26.1.5") as engine:
            engine.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sleep", "inf")
            with engine.serve("web", tcp=[80]):
                assert engine.host.wan.probe.tcp(engine.host.v4, 8080) == "open"

    Entering the `with` boots the host, starts dockerd and loads the image ``busybox``.
    """

    def __init__(
        self,
        version: str = DEFAULT,
        args: Sequence[str] = (),
        *,
        wan: Wan | None = None,
        host: Host | None = None,
        live_restore: bool = False,
        with_busybox: bool = True,
        containerd_store: bool = False,
        data: Sequence[Path] = (),
    ) -> None:
        """`args` are more arguments for dockerd. A `host` given here stays the caller's to close.

        With `containerd_store` it keeps its images in containerd's store, as Docker 29 does by default. `data` are
        directories that /var/lib/docker has when dockerd starts for the first time, see `tests.lab.data`.
        """
        self.version = version
        self._own_host = host is None
        self.host = host or Host(engine_root(version), wan)
        if containerd_store:
            self.host.write("/etc/docker/daemon.json", json.dumps({"features": {"containerd-snapshotter": True}}))
        fill(self.host.plain("/var/lib/docker"), data)
        with_busybox = with_busybox and "image" not in {path.name for path in data}  # data with images has it
        super().__init__(self.host, args, live_restore=live_restore, with_busybox=with_busybox)

    def __enter__(self) -> Engine:
        try:
            if not self.host.running:
                self.host.boot()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def wan(self) -> Wan:
        """Return the outsider."""
        return self.host.wan

    def reboot(self, *, start: bool = True) -> None:
        """Halt the host and boot it again, see `Host.reboot`; then start dockerd, if `start`."""
        self.host.reboot()
        self.forget()
        if start:
            self.start()

    def close(self) -> None:
        """Remove everything, without an orderly end; a host of the caller's only loses its dockerd."""
        if self._own_host:
            self.host.close()
            self.forget()
        elif self.host.running:
            self.stop()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return the output of `docker inspect` for a container."""
        return dict(self.api("GET", f"/containers/{container}/json"))

    def address(self, container: str, network: str = "bridge") -> tuple[str, str]:
        """Return a container's addresses on a network: (IPv4, IPv6), "" for one that it does not have."""
        there = self.inspect(container)["NetworkSettings"]["Networks"][network]
        return there["IPAddress"], there["GlobalIPv6Address"]

    def pid_of(self, container: str) -> int:
        """Return the pid of the container's first process as the *host* numbers it; LabError if it does not run."""
        pid = int(self.inspect(container)["State"]["Pid"])
        if not pid:
            raise LabError(f"container {container} is not running")
        return pid

    def netns(self, container: str) -> Netns:
        """Return the container's network namespace: to probe from, or to run this machine's programs in."""
        return Netns(f"{self.host.inside}/proc/{self.pid_of(container)}/ns/net")

    def serve(
        self, container: str, *, tcp: Iterable[int] = (), udp: Iterable[int] = (), sctp: Iterable[int] = ()
    ) -> Servers:
        """Start echo servers inside the container's network, on all its addresses of both families.

        They end with `close` (or the end of a ``with``), and when the container's first process does.
        """
        watch = outer_pid(self.host.inside / "proc" / str(self.pid_of(container)))
        return self.netns(container).probe.serve(tcp=tcp, udp=udp, sctp=sctp, name=container, watch=watch)


def outer_pid(inner: Path) -> int:
    """Return the pid on this machine of a capsule's ``/proc/N`` (seen through `Capsule.inside`)."""
    # Both procfs show the same process: its pid namespace and start time are the same, and its
    # NSpid line lists the pids in all namespaces, of which this machine's is the first.
    wanted = _ns_pids((inner / "status").read_text())
    space = os.stat(inner / "ns/pid").st_ino
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = Path(f"/proc/{entry}/status").read_text()
                if os.stat(f"/proc/{entry}/ns/pid").st_ino != space:
                    continue
            except OSError:
                continue
            if _ns_pids(status)[-len(wanted) :] == wanted:
                return int(entry)
    raise LabError(f"{inner} has ended")


def _ns_pids(status: str) -> list[str]:
    return status.partition("\nNSpid:")[2].partition("\n")[0].split()
