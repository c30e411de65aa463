"""The tests' own layout: where a module's tests are, and that no test module depends on another."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = ROOT / "tests/pure"
FILES = sorted((ROOT / "tests").rglob("*.py"))
#: Tests in a package's directory that belong to no single module, with their modules.
SEVERAL = {
    "fwctl/check/test_compose.py": ["fwctl/check/compose"],
    "nftables/test_path.py": ["nftables/rules_forward.py", "nftables/rules_host.py", "nftables/rules_bridge.py"],
    "nftables/test_bans.py": ["nftables/ban_elements.py", "nftables/rules_forward.py"],
    "state/test_any_history.py": ["state/reconciler.py", "state/applier.py", "state/store.py"],
    "state/test_departures.py": ["state/reconciler.py", "state/applier.py", "state/deferred.py"],
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_test_module(path: Path) -> None:
    """Code that tests share is in a module without tests, so that each test file can be changed, moved and run
    alone."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {name for name in imported if name.startswith("tests.") and ".test_" in name}


def test_pure_tests_mirror_the_packages() -> None:
    """`tests/pure/PACKAGE/test_MODULE.py` has the tests of `plugin/PACKAGE/MODULE.py`."""
    for path in sorted(PURE.rglob("test_*.py")):
        name = path.relative_to(PURE)
        if (ROOT / "plugin" / name.parts[0]).is_dir():
            own = str(name.with_name(name.name.removeprefix("test_")))
            missing = [module for module in SEVERAL.get(str(name), [own]) if not (ROOT / "plugin" / module).exists()]
            assert not missing, f"{name} tests {missing}, which plugin/ does not have: rename it after what it tests"


def test_no_file_of_the_plugin_is_exempt_from_a_limit() -> None:
    """Every function fits a screen: pyproject.toml has no exception from ruff's limits but for the tests."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert [name for name in lint["per-file-ignores"] if not name.startswith("tests/")] == []
