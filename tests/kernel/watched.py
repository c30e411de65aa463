"""A chain of another program at the host's input, after docker-fw's first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kernel.site import Site


@contextmanager
def watched(site: Site, rule: str) -> Iterator[Callable[[], int]]:
    """Yield a function that returns how many such packets the host's other chains (priority filter) have seen."""
    chain = f"chain i {{\n type filter hook input priority filter\n {rule} counter\n }}"
    site.run("nft", "-f", "-", input=f"table inet watch {{\n{chain}\n}}\n")
    try:
        yield lambda: int(site.run("nft", "list", "table", "inet", "watch").stdout.split("packets ")[1].split()[0])
    finally:
        site.run("nft", "delete", "table", "inet", "watch")
