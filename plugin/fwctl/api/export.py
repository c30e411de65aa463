"""`fwctl export`: the table as a file for `nft -f` that needs no other file. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from plugin.nftables.document import away, document
from plugin.nftables.features import Features
from plugin.nftables.sets import TABLE, WATCHED, Element

_HEAD = """\
#!/usr/sbin/nft -f
# docker-fw {version}: its tables ({table}) on this host, {when}, by `fwctl export`.
# nft -f FILE loads them in one transaction and replaces those in the kernel. They describe the moment of the export:
# containers that start, stop or move later are not in them. docker-fw replaces them when it starts.
# Other programs' bridges are exempt by name. docker-proxy's ports are closed one by one, not by its control group.
# Openings by `fwctl allow --for` are left out; a ban that expires starts again when this file is loaded.
# Ports that Docker networks accept stay open here. The table of a running docker-fw closes them if docker-fw is stuck.
# Loading it where docker-fw has no table needs nftables 1.0.6 or newer and Linux 5.10 or newer.
"""


def file(
    mark: int,
    elements: Iterable[Element],
    timed: Mapping[Element, int],
    unmanaged: Collection[str],
    features: Features,
    *,
    version: str,
    when: str,
) -> str:
    """Return the file. `unmanaged`: names of exempt bridges, because their indices change at a boot.

    `features`: those of this kernel.
    """
    exported = [*WATCHED, *(element for element in elements if element.set != "unmanaged")]
    features = dataclasses.replace(features, owned=False, cgroups=False, listeners=False)
    text = document(mark, exported, features, unmanaged=unmanaged, timed=timed)
    gone = away("inet") + (away("bridge") if features.bridge else "")
    return f"{_HEAD.format(version=version, table=TABLE, when=when)}{gone}\n{text}"
