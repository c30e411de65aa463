"""`fwctl export`: the table as a file for `nft -f` that stands alone. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from plugin.nftables.document import away, document
from plugin.nftables.sets import TABLE, WATCHED, Element

_HEAD = """\
#!/usr/sbin/nft -f
# docker-fw {version}: its tables ({table}) on this host, {when}, by `fwctl export`.
# nft -f FILE puts them there in one transaction, in the place of those that stand. They know no more than what was
# known then: who starts, stops or moves later is not in it. A docker-fw that starts puts its own in its place.
# Other programs' bridges are left alone by name. docker-proxy's ports are closed one by one, not by its control group.
# What `fwctl allow --for` opened is left out; who was banned for a time is so again from when this is loaded.
# What Docker's own networks accept stands for good here; a docker-fw that dies lets it end within half a minute.
# To load it by itself, without a table that stands, needs nftables 1.0.6 or newer and Linux 5.10 or newer.
"""


def file(
    mark: int,
    elements: Iterable[Element],
    timed: Mapping[Element, int],
    unmanaged: Collection[str],
    *,
    logs: bool,
    binds: bool,
    version: str,
    when: str,
) -> str:
    """`foreign`: names of bridges that are left alone; their indices are not the same after a boot."""
    kept = [*WATCHED, *(element for element in elements if element.set != "unmanaged")]
    text = document(mark, kept, cgroups=False, holds=False, logs=logs, binds=binds, unmanaged=unmanaged, timed=timed)
    gone = away("inet") + (away("bridge") if binds else "")
    return f"{_HEAD.format(version=version, table=TABLE, when=when)}{gone}\n{text}"
