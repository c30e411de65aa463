"""The architecture: which package may import which, which modules are pure, and which modules alone use a library."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _name(path: Path) -> str:
    """Return a file's dotted name: `plugin/policy/peers.py` → `policy.peers`, `plugin/policy/__init__.py` →
    `policy`."""
    parts = path.relative_to(ROOT / "plugin").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / "plugin").rglob("*.py"))}

#: The packages and top-level modules that a package may import, in addition to itself.
LAYERS = {
    "text": "",
    "paths": "",
    "protocols": "",
    "model": "text protocols",
    "jsonio": "text protocols model",
    "labels": "text protocols model jsonio",
    "settings": "text paths protocols model jsonio labels",
    "kernel": "text protocols model jsonio",
    "policy": "text protocols model jsonio labels",
    "nftables": "text protocols model jsonio labels policy kernel",
    "state": "text protocols model jsonio settings labels policy nftables kernel",
    "docker": "text protocols model jsonio settings labels policy kernel state",
    "driver": "text protocols model jsonio settings labels kernel state",
    "fwctl": "text protocols model jsonio labels",
    "fwctl.check": "text protocols model jsonio labels policy fwctl",
    "fwctl.host": "text paths protocols model jsonio settings labels policy nftables kernel state docker fwctl "
    "fwctl.api",
    "fwctl.api": "text protocols model jsonio settings labels policy nftables kernel state docker fwctl",
    "fwctl.cli": "text protocols model jsonio settings labels fwctl fwctl.check",
    "daemon": "text paths protocols model jsonio settings labels policy nftables kernel state docker driver fwctl "
    "fwctl.api fwctl.host",
    "gunicorn_conf": "text protocols model jsonio settings labels policy nftables kernel state daemon",
}
#: fwctl's commands load these only when they run, inside functions: `fwctl status` must start at once.
LAZY = {"fwctl.cli": "fwctl.host"}

#: Packages and modules that only decide, without effects: no kernel, no disk, no clock, no Docker.
PURE = (
    "protocols",
    "text",
    "paths",
    "model",
    "jsonio",
    "settings",
    "labels",
    "policy",
    "kernel.names",
    *(
        f"nftables.{name}"
        for name in (
            "features",
            "fields",
            "sets",
            "lookups",
            "hooks",
            "rate_chains",
            "optional_chains",
            "rate_quota",
            "rules_forward",
            "rules_host",
            "rules_bridge",
            "document",
            "elements",
            "compile",
            "ban_elements",
            "applied",
            "drift",
        )
    ),
    "docker.engine",
    "docker.parse",
    "docker.requested_ports",
    "docker.container_labels",
    "docker.tracked",
    "docker.snapshot",
    "docker.events",
    "docker.bounded_json",
    "docker.event_clock",
    "driver.protocol",
    "state.codec",
    *(
        f"fwctl.api.{name}"
        for name in (
            "export",
            "status",
            "plan",
            "explain",
            "flow_ends",
            "docker_firewall",
        )
    ),
    "fwctl.drop_record",
    "fwctl.cli.render",
    "fwctl.cli.render_answers",
    *(f"fwctl.check.{name}" for name in ("hints", "judge", "places", "show")),
    *(f"fwctl.check.compose.{name}" for name in ("form", "model", "ports", "stack", "variables")),
)
#: Modules of the standard library that a pure module must not import.
EFFECTS = {
    "asyncio", "ctypes", "fcntl", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time",
    "urllib",
}  # fmt: skip
#: The only modules that may import a library.
OWNERS = {
    "docker": ("docker",),
    "requests": ("docker",),
    "urllib3": ("docker",),
    "pyroute2": ("kernel",),
    "nftables": ("nftables.client", "daemon.start"),
    "flask": ("driver.http", "fwctl.api", "daemon"),
    "gunicorn": ("gunicorn_conf",),
    "yaml": ("fwctl.check",),
    "rich": ("fwctl.cli.terminal",),
}


@cache
def tree(name: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(MODULES[name].read_text())


def package(module: str) -> str:
    """Return a module's package: `policy.peers` → `policy`, `fwctl.api.status` → `fwctl.api`, `fwctl.drop_record` →
    `fwctl`."""
    parts = module.split(".")
    nested = parts[0] == "fwctl" and f"fwctl.{parts[1] if parts[1:] else ''}" in LAYERS
    return ".".join(parts[:2]) if nested else parts[0]


def imports(name: str, *, lazy: bool | None = None) -> set[str]:
    """Return every module that a module imports, as `plugin.policy.peers` or `socket`. `lazy`: only those inside
    functions, or only the others."""
    inside = {inner for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if lazy is not None and lazy != (node in inside):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            module = node.module or ""
            named = {f"{module}.{alias.name}" for alias in node.names}
            found |= {each for each in named if each.removeprefix("plugin.") in MODULES} or {module}
    return found


def within(module: str, places: tuple[str, ...] | list[str]) -> bool:
    """True if the module is one of these, or in one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _edges() -> dict[tuple[str, str], str]:
    """Return the imports that the layers forbid, with the reason."""
    found = {}
    for name in MODULES:
        mine = package(name)
        for lazy in (False, True):
            allowed = LAYERS.get(mine, "").split() + (LAZY.get(mine, "").split() if lazy else [])
            for module in imports(name, lazy=lazy):
                other = module.removeprefix("plugin.")
                if module == "plugin" or other == module or not name:
                    continue
                if package(other) not in (mine, *allowed):
                    found[name, other] = f"{mine} may import {' '.join(allowed) or 'nothing'}, not {package(other)}"
    return found


def test_every_package_has_a_layer() -> None:
    """A new package must declare which others it may import."""
    assert {package(name) for name in MODULES if name} == set(LAYERS)


def test_packages_import_only_what_their_layer_allows() -> None:
    """Data flows one way: modules that decide do not know those that act, and no package is imported in a circle."""
    assert not {f"{one} imports {other}: {why}" for (one, other), why in _edges().items()}


def test_no_module_is_imported_in_a_circle() -> None:
    """Modules are not imported in a circle, also within a package and inside functions: a module can be read knowing
    only its imports."""
    graph = {name: {each.removeprefix("plugin.") for each in imports(name)} & MODULES.keys() for name in MODULES}
    while leaves := {name for name, needed in graph.items() if not needed}:
        graph = {name: needed - leaves for name, needed in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, PURE)])
def test_a_pure_module_touches_nothing(name: str) -> None:
    """The code that decides about packets can be run, tested and trusted without a kernel, a disk, a clock or
    Docker."""
    for module in imports(name):
        top, _, rest = module.partition(".")
        if top == "plugin":
            assert within(rest, PURE), f"{name} is pure and imports {module}"
        else:
            assert top in sys.stdlib_module_names, f"{name} is pure and imports {module}"
            assert top not in EFFECTS, f"{name} is pure and imports {module}"
    names = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


def test_every_pure_place_exists() -> None:
    """A module that is moved must stay on the list."""
    assert not {place for place in PURE if place not in MODULES}


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_used_in_one_place(library: str) -> None:
    """To change to another library, one package has to be read."""
    users = {name for name in MODULES for module in imports(name) if module.split(".")[0] == library}
    assert users
    assert not {name for name in users if not within(name, OWNERS[library])}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_a_docstring(name: str) -> None:
    """Each module has a docstring."""
    assert ast.get_docstring(tree(name))


_WATCHED = """
import sys
import argparse, concurrent.futures, ctypes, docker, flask, gunicorn, json.scanner, pyroute2, requests, urllib3
seen = []
def hook(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event == "open" and not writes and str(args[0]).endswith((".py", ".pyc")):
        return
    if event.startswith(("open", "socket.", "subprocess.", "os.", "ctypes.dlopen", "shutil.")):
        if event not in ("os.listdir", "os.fspath"):
            seen.append(f"importing {name}: {event} {args!r:.200}")
sys.addaudithook(hook)
for name in sys.argv[1:]:
    __import__("plugin." + name)
print("\\n".join(seen), end="")
"""


def test_importing_does_nothing() -> None:
    """Importing a module opens no file, socket or process: effects start in the composition root."""
    names = [name for name, path in MODULES.items() if path.name not in ("__init__.py", "__main__.py")]
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_first_program_of_a_start_loads_little() -> None:
    """On a slow machine a start has ten seconds: its first program imports none of docker-fw's packages, no library,
    and of Python's only what it needs to close and to bind the socket."""
    small = {"contextlib", "os", "select", "signal", "socket", "stat", "sys", "time", "typing"}
    assert imports("daemon.start", lazy=False) == {"__future__", "plugin.paths", *small}
    assert imports("paths") <= {"__future__"}
