"""Two builds of the plugin in a registry, to upgrade from one to the other."""

from __future__ import annotations

import json

from tests.lab import Engine, Registry
from tests.product import ROOT, plugin_dir


def pushed(engine: Engine, registry: Registry) -> list[str]:
    """Push two builds that differ in their description and in one file; return their references.

    Docker 26 refuses to create a plugin from files that another one has exactly the same.
    """
    directory = plugin_dir(engine)
    config, mark = engine.host.share / "plugin/config.json", engine.host.share / "plugin/rootfs/build"
    made = json.loads((ROOT / "config.json").read_text())
    references = []
    for build in ("one", "two"):
        config.unlink()
        config.write_text(json.dumps({**made, "description": f"build {build}"}))
        mark.write_text(build)
        reference = f"{registry.address}/docker-fw:{build}"
        engine.docker("plugin", "create", reference, directory, timeout=300)
        engine.docker("plugin", "push", reference, timeout=300)
        engine.docker("plugin", "rm", reference, timeout=300)
        references.append(reference)
    mark.unlink()
    config.unlink()
    config.write_text(json.dumps(made))
    return references
