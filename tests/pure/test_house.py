"""The house rules: the core is pure, importing does nothing, and every file is of one thought."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = sorted((ROOT / "plugin").rglob("*.py"))


def room(path: Path) -> str:
    """`plugin/check/judge.py` → `check.judge`."""
    return ".".join(path.relative_to(ROOT / "plugin").with_suffix("").parts)


ROOMS = {room(path): path for path in PLUGIN}
#: Rooms that decide. They touch nothing: the standard library's data types and one another. These must be; others are
#: whose docstring says so.
DECIDE = {
    "bans", "books", "directory", "effect", "grammar", "inventory", "labelled", "labels", "listing", "lookups", "model",
    "overrides", "policy", "protocol", "record", "ruleset", "said", "sets", "settings", "show", "state", "status",
    "table", "tiers", "verdict",
}  # fmt: skip
PURE = sorted(
    DECIDE | {name for name, path in ROOMS.items() if "Pure" in (ast.get_docstring(ast.parse(path.read_text())) or "")}
)
#: Of the standard library, what a pure room has no business with.
EDGES = {
    "asyncio", "ctypes", "fcntl", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time",
    "urllib",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Every module that the file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            rooms = {f"{module}.{alias.name}" for alias in node.names}
            rooms = {name for name in rooms if name.removeprefix("plugin.") in ROOMS}
            found |= rooms or {module}
    return found


@pytest.mark.parametrize("name", PURE)
def test_a_pure_room_imports_only_pure_rooms_and_data(name: str) -> None:
    """What decides about packets can be run, tested and trusted without a kernel, a disk or Docker."""
    for module in imports(ROOMS[name]):
        top, _, rest = module.partition(".")
        if top == "plugin":
            assert rest in PURE, f"{name} imports {module}"
        else:
            assert top in sys.stdlib_module_names, f"{name} imports {module}"
            assert top not in EDGES, f"{name} imports {module}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_room_opens_nothing(name: str) -> None:
    """Nor does it use the built-ins that reach outside."""
    names = {n.id for n in ast.walk(ast.parse(ROOMS[name].read_text())) if isinstance(n, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


@pytest.mark.parametrize("path", PLUGIN, ids=room)
def test_a_file_says_what_it_is_for(path: Path) -> None:
    """Each file begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


_WATCHED = """
import sys
import argparse, concurrent.futures, ctypes, docker, flask, gunicorn, json.scanner, pyroute2, requests, urllib3
told = []
def hook(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event == "open" and not writes and str(args[0]).endswith((".py", ".pyc")):
        return
    if event.startswith(("open", "socket.", "subprocess.", "os.", "ctypes.dlopen", "shutil.")):
        if event not in ("os.listdir", "os.fspath"):
            told.append(f"importing {name}: {event} {args!r:.200}")
sys.addaudithook(hook)
for name in sys.argv[1:]:
    __import__("plugin." + name)
print("\\n".join(told), end="")
"""


def test_importing_does_nothing() -> None:
    """Importing a module opens no file, socket or process: what happens, happens in the composition root."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *(room(p) for p in PLUGIN if p.name != "__init__.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
