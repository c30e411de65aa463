"""Debian's docker-registry in a network of the lab, for `docker push` and `docker plugin install`."""

from __future__ import annotations

import subprocess
import time

from .capsule import Capsule, Process
from .netns import Netns
from .roots import engine_root
from .store import LabError
from .wan import Wan

_CONFIG = """\
version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: /var/lib/registry}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""


class Registry:
    """A registry that engines reach at `address`; empty at first, removed at the end.

        with Wan() as wan, Registry(wan) as registry:
            with Engine(wan=wan, args=[registry.insecure]) as engine:
                engine.docker("tag", "busybox", f"{registry.address}/busybox")
                engine.docker("push", f"{registry.address}/busybox")

    On a host's loopback, ``Registry(host.netns, "127.0.0.1:5000")``, Docker needs no such argument.
    """

    def __init__(self, where: Netns, address: str = f"{Wan.V4}:5000") -> None:
        """`where` is a namespace that has the address."""
        self.address = address
        self._where = where
        self.capsule = Capsule(engine_root("26.1.5"), netns=where, kind="r")
        self._process: Process | None = None

    @property
    def insecure(self) -> str:
        """Return dockerd's argument to use it without TLS."""
        return f"--insecure-registry={self.address}"

    def start(self, timeout: float = 20) -> None:
        """Start it and wait until it listens; LabError with its log if it does not."""
        self.capsule.boot()
        (self.capsule.share / "registry.yml").write_text(_CONFIG.format(address=self.address))
        log = self.capsule.share / "registry.log"
        with open(log, "ab") as out:
            self._process = self.capsule.popen(
                ["docker-registry", "serve", "/lab/registry.yml"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + timeout
        host, _, port = self.address.rpartition(":")
        while self._where.probe.tcp(host.strip("[]"), int(port), linger=0) != "open":
            if self._process.status is not None or time.monotonic() > end:
                raise LabError(f"the registry does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)

    def close(self) -> None:
        """End it, and delete its content."""
        self.capsule.close()

    def __enter__(self) -> Registry:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
