"""Read the machine-readable parts of the project's documents: commands that a user types, and tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(heading: str) -> list[list[str]]:
    """Return the README's shell commands under a heading, block by block."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]


def rows(document: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this head, row by row, without the head."""
    lines = (ROOT / document).read_text().split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
