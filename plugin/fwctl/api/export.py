"""`fwctl export`: the table as a file for `nft -f` that stands alone. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from plugin.nftables.document import away, document
from plugin.nftables.sets import TABLE, WATCHED, Element

_HEAD = """\
#!/usr/sbin/nft -f
# docker-fw {version}: its tables ({table}) on this host, {when}, by `fwctl export`.
# nft -f FILE loads them in one transaction and replaces those in the kernel. They describe the moment of the export:
# containers that start, stop or move later are not in them. docker-fw replaces them when it starts.
# Other programs' bridges are exempt by name. docker-proxy's ports are closed one by one, not by its control group.
# What `fwctl allow --for` opened is left out; a ban that expires starts again when this file is loaded.
# Ports that Docker networks accept stay open here. The table of a running docker-fw closes them if docker-fw is stuck.
# Loading it where docker-fw has no table needs nftables 1.0.6 or newer and Linux 5.10 or newer.
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
    """Return the file. `unmanaged`: names of exempt bridges, because their indices change at a boot."""
    exported = [*WATCHED, *(element for element in elements if element.set != "unmanaged")]
    text = document(
        mark, exported, cgroups=False, holds=False, logs=logs, binds=binds, unmanaged=unmanaged, timed=timed
    )
    gone = away("inet") + (away("bridge") if binds else "")
    return f"{_HEAD.format(version=version, table=TABLE, when=when)}{gone}\n{text}"
