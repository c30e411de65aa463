"""Connection tracking helpers, assigned as an administrator does: the host expects flows that a protocol announces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel.site import Site

#: A helper's protocol and port.
HELPERS = {"ftp": ("tcp", 21), "tftp": ("udp", 69)}


@contextmanager
def helper(site: Site, name: str) -> Iterator[None]:
    """Assign a helper to all flows to its port, also to those that the host opens."""
    proto, port = HELPERS[name]
    chains = "".join(
        f"""
	chain {hook} {{
		type filter hook {hook} priority 0; policy accept;
		{proto} dport {port} ct helper set "{name}"
	}}"""
        for hook in ("prerouting", "output")
    )
    table = f"""
table inet helpers {{
	ct helper {name} {{
		type "{name}" protocol {proto}
	}}{chains}
}}
"""
    site.run("nft", "-f", "-", input=table)
    try:
        yield
    finally:
        site.run("nft", "delete", "table", "inet", "helpers")
