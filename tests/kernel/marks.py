"""A table of another program that counts packets by docker-fw's mark."""

from __future__ import annotations

from tests.kernel.site import MARK, Site


class Marks:
    """Another program's table, after docker-fw's at the forward hook, that counts packets with and without its mark."""

    def __init__(self, site: Site, four: object, six: object, forge: bool = False) -> None:
        """Count packets to these two addresses."""
        self._site = site
        forged = "meta mark set 0xffffffff" if forge else ""
        text = f"""
table inet marks {{
  chain early {{ type filter hook prerouting priority -300; {forged}
  }}
  chain late {{ type filter hook forward priority 10;
    ip daddr {four} goto count
    ip6 daddr {six} goto count
  }}
  chain count {{
    meta mark & {MARK:#x} == {MARK:#x} counter
    meta mark & {MARK:#x} == 0 counter
    meta mark & {0xFFFFFFFF ^ MARK:#x} == {0xFFFFFFFF ^ MARK if forge else 0:#x} counter
  }}
}}
"""
        site.run("nft", "-f", "-", input=text)

    def __enter__(self) -> Marks:
        return self

    def __exit__(self, *_: object) -> None:
        self._site.run("nft", "delete", "table", "inet", "marks")

    def seen(self) -> tuple[int, int, int]:
        """Return the packets with docker-fw's mark, those without, and those whose other 31 bits were unchanged."""
        shown = self._site.run("nft", "list", "table", "inet", "marks").stdout
        marked, not_marked, others = (
            int(line.split("packets ")[1].split()[0]) for line in shown.splitlines() if "packets " in line
        )
        return marked, not_marked, others
