"""Add one entry to a registry of the product, and check that everything follows.

The product is copied, the entry is written into its registry, and the tests in one of these files run there, in a
process of their own: the registries are constants, which every module reads when it is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Entry:
    """Text to insert into a file of the product, before the only occurrence of `before`."""

    file: str
    before: str
    text: str


#: UDP-Lite, which docker-fw does not know, and conntrack does.
_UDP_LITE = 'Protocol(name="udplite", number=136, nft="udplite", ports=True, socket=None, relay=False)'
ADDED_PROTOCOL = Entry("plugin/protocols.py", '    Protocol(name="gre"', f"    {_UDP_LITE},\n")


def copied(to: Path, *entries: Entry) -> Path:
    """Copy the product and its tests, with these entries and no other change."""
    # With what Python and pytest compiled, which is most of the time otherwise; not with what they write at the moment.
    ignored = shutil.ignore_patterns("*.pyc.*", "bench", "torture")
    for name in ("plugin", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for name in ("README.md", "LABELS.md", "config.json", "pyproject.toml"):
        shutil.copy(ROOT / name, to / name)
    for entry in entries:
        path = to / entry.file
        text = path.read_text()
        assert text.count(entry.before) == 1, f"{entry.before!r} is not at one place of {entry.file}"
        path.write_text(text.replace(entry.before, entry.text + entry.before))
    return to


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy."""
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=where, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def check(where: Path, *tests: str) -> None:
    """Run tests in the copy; fail with pytest's output unless there are some and all of them pass."""
    done = run(where, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
