"""Runs an older checkout's plugin and keeps what it leaves when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from plugin.nftables.sets import FORMER, TABLE
from tests.kernel.netns import nowhere
from tests.kernel.older import BANNED, BOOT, BRIDGE, HERE, ORDER, boot_id, docker_knows
from tests.kernel.running import Running
from tests.kernel.site import Site
from tests.recorded import PORTMAP
from tests.waiting import until


class Older(Running):
    """The plugin of another checkout."""

    def __init__(self, site: Site, root: Path) -> None:
        super().__init__(site)
        self.root = root

    def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = self.site.host.popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:plugin.gunicorn_conf"],
                cwd=self.root,
                env=self.environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def table(self) -> str:
        """Its tables, of whatever name and family."""
        names = (f"{family} {name}" for name in (TABLE, FORMER) for family in ("inet", "bridge"))
        listed = (self.site.run("nft", "-nn", "list", "table", *each.split(), check=False).stdout for each in names)
        return "".join(listed)

    def fwctl(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "plugin.cli", *arguments, "--socket", str(self.socket)]
        subprocess.run(command, cwd=self.root, check=True, timeout=60)


def has(fw: Older, room: str) -> bool:
    return (fw.root / f"plugin/{room}.py").exists()


def leave(fw: Older, name: str) -> None:
    """A network with three containers, one of Docker's own, and what this version has besides; then it is killed."""
    fw.site.docker_box(BRIDGE, 100)
    docker_knows(fw)
    fw.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    for number in ORDER:
        docker_knows(fw, number)
        endpoint = fw.endpoint(network, number)
        fw.well("CreateEndpoint", endpoint)
        fw.move({**endpoint, "Joined": fw.well("Join", endpoint)})
        if number == 2:
            ports = [{"Proto": 6, "Port": port, "HostPort": 10000 + port} for port in (8080, 9090)]
            fw.well("ProgramExternalConnectivity", {**endpoint, "Options": {PORTMAP: ports}})
        if number == 3 and has(fw, "overrides"):
            fw.fwctl("allow", "c3", "7000")
            fw.fwctl("deny", "c3", "443")
            fw.fwctl("ban", BANNED)
    if has(fw, "guard"):
        until(lambda: "8080/6" in fw.opens("10.100.0.2"), "the guest is known")
    worker = fw.worker()
    assert fw.process
    for pid in (fw.process.pid, worker):
        os.kill(pid, signal.SIGKILL)
    fw.process.wait(30)
    fw.process = None
    kept = HERE / name
    kept.mkdir(exist_ok=True)
    for path in fw.state.parent.glob("state.json*"):
        if not path.name.endswith("~"):
            (kept / path.name).write_text(path.read_text().replace(boot_id(), BOOT))
    (kept / "table.nft").write_text(fw.table())


root, name = Path(sys.argv[1]).resolve(), sys.argv[2]
with nowhere(), Site() as site:
    fw = Older(site, root)
    try:
        leave(fw, name)
    finally:
        sys.stderr.write(fw.log.read_text())
        fw.close()
