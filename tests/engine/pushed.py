"""Push another version of the plugin into a registry, by the README's commands."""

from __future__ import annotations

import json

from tests.documents import commands
from tests.lab import Engine, Registry
from tests.product import plugin_dir


def push(maker: Engine, registry: Registry) -> None:
    """Push a version that differs from this one, by the README's commands after `make plugin`."""
    path = plugin_dir(maker)
    made = maker.host.share / path.removeprefix("/lab/")
    (made / "rootfs/newer").touch()
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "description": "newer"}))
    make, *rest = commands("Upgrading")[0]
    assert make == "make plugin"
    for command in rest[:3]:
        maker.host.run(["sh", "-ec", at(registry, command).replace("build/plugin", path)], timeout=120)


def at(registry: Registry, command: str) -> str:
    """Return a command of the README for this registry."""
    return command.replace("127.0.0.1:5000", registry.address)
