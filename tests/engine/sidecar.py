"""An engine with docker-fw as its sidecar, started as compose-examples/sidecar.yml describes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.engine.leftovers import state_of
from tests.lab import ENGINES, Engine, engine_root
from tests.product import IMAGE, ROOT, Fw
from tests.waiting import until

SIDECAR = ROOT / "compose-examples/sidecar.yml"
#: The commands that the file itself lists.
UP, BOOT_INSTALL, _ = re.findall(r"^#   (docker .*)$", SIDECAR.read_text(), re.MULTILINE)


class Sidecar(Fw):
    """An engine with docker-fw as its sidecar. `before`: the host's state without it."""

    before: dict[str, set[str]]

    @classmethod
    def up(cls, engine: Engine) -> Sidecar:
        """Start it on an engine that has docker-fw's image (see `with_image`)."""
        shutil.copy(SIDECAR, engine.host.share)
        if engine.try_docker("compose", "version").returncode:
            # Debian has no compose for this engine: the newest engine's speaks its API too.
            lent = engine.host.put(engine_root([*ENGINES][-1]) / "usr/libexec/docker/cli-plugins/docker-compose")
            plugins = "/usr/local/lib/docker/cli-plugins"
            engine.host.run(["sh", "-ec", f"mkdir -p {plugins}; cp {lent} {plugins}"])
        engine.docker("run", "--rm", "busybox", "true")  # creates Docker's objects for the first container
        fw = cls(engine, driver="fw")
        fw.before = state_of(engine)
        fw.before["images"].discard(IMAGE)
        fw.user(UP)
        until(fw.answers, "the sidecar answers")
        return fw

    def user(self, command: str) -> str:
        """Run a user's command in the directory of sidecar.yml; return its output."""
        return self.host.run(["sh", "-ec", f"cd /lab; {command}"]).stdout

    @property
    def container(self) -> str:
        return self.user("docker compose -f sidecar.yml ps -aq").strip()

    def socket(self) -> Path:
        return self.host.inside / "run/docker/plugins/fw.sock"
