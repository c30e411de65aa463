"""A table of the host's own rules, which docker-fw must leave as it is."""

from __future__ import annotations

from tests.kernel.running import Running

#: As an administrator writes it: the host's database is only for the host.
THEIRS = """
table inet {0} {{
	set friends {{
		type ipv4_addr
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "lo" accept
		tcp dport 5432 drop
	}}
}}
"""


def listed(fw: Running, name: str) -> str:
    return fw.site.run("nft", "list", "table", "inet", name, check=False).stdout
