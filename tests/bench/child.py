"""Run a measurement in a process of its own: `python -m tests.bench.child MODULE SCALE GROUPS`, which prints JSON.

Its objects, of which there may be hundreds of thousands, are removed with it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Collection

from tests.bench.scale import SCALES, Scale
from tests.bench.table import Table


def measure(module: str, scale: Scale, table: Table, groups: Collection[str]) -> None:
    """Add the results of `tests.bench.MODULE.measure` to the table.

    RuntimeError with the end of its stderr if it fails; subprocess.TimeoutExpired after half an hour.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.child", module, scale.name, *groups],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
    )
    if done.returncode:
        raise RuntimeError(f"tests.bench.{module} failed, see above")
    table.merge(Table.read(done.stdout))


def main() -> None:
    module, scale, *groups = sys.argv[1:]
    table = Table()
    importlib.import_module(f"tests.bench.{module}").measure(table, SCALES[scale], groups)
    print(table.json())


if __name__ == "__main__":
    main()
