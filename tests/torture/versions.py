"""Two builds of the plugin in a registry, to upgrade from one to the other."""

from __future__ import annotations

import json

from tests.lab import Engine, Registry
from tests.product import ROOT, plugin_dir


def pushed(engine: Engine, registry: Registry) -> list[str]:
    """Push two builds that differ in their description; return their references."""
    directory = plugin_dir(engine)
    config = engine.host.share / "plugin/config.json"
    made = json.loads((ROOT / "config.json").read_text())
    references = []
    for build in ("one", "two"):
        config.unlink()
        config.write_text(json.dumps({**made, "description": f"build {build}"}))
        reference = f"{registry.address}/docker-fw:{build}"
        engine.docker("plugin", "create", reference, directory, timeout=300)
        engine.docker("plugin", "push", reference, timeout=300)
        engine.docker("plugin", "rm", reference, timeout=300)
        references.append(reference)
    config.unlink()
    config.write_text(json.dumps(made))
    return references
