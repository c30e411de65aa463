"""The repetitive parts of the table's text: look-ups by port, block and prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from plugin.labels.ranges import BLOCKS, LENGTHS, block_expression, length_and_prefix, masked
from plugin.nftables import sets
from plugin.nftables.sets import QUARANTINE_SETS, SetSpec, spec_of
from plugin.policy.bans import BAN_LENGTHS

_IP = {4: "ip", 6: "ip6"}
#: The rate limit of logged drops, for one container or for one host port.
LOG_RATE = "limit rate 5/second burst 20 packets"


def set_text(name: str, spec: SetSpec) -> str:
    """Return the declaration of a set or map in nft's language."""
    kind = "map" if spec.data else "set"
    typed = " . ".join(spec.key) + (" : " + " . ".join(spec.data) if spec.data else "")
    more = "\t\tflags timeout\n" if spec.timed else ""
    more += "\t\tcounter\n" if spec.counted else ""
    more += f"\t\tsize {spec.size}\n" if spec.meter and spec.size else ""
    more += f"\t\tflags dynamic,timeout\n\t\ttimeout {spec.meter}s\n" if spec.meter else ""
    return f"\t# {spec.comment}\n\t{kind} {name} {{\n\t\ttypeof {typed}\n{more}\t}}\n"


def logged(name: str, key: str, log: str) -> str:
    """Log a few packets a second for each value of the key. `name`: the set that counts them."""
    return f"update @{name} {{ {key} {LOG_RATE} }} {log}"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(f"\t\t{line}" for line in lines)


def _by_port(version: int, end: str, name: str, verdict: str) -> list[str]:
    """Return look-ups by an address and a port, and by the blocks that contain the port."""
    key = f"{_IP[version]} {end} . meta l4proto . "
    exact = f"{key}th dport @{name}{version} {verdict}"
    return [exact, *(f"{key}{block_expression(size)} @{name}{version}_blocks {verdict}" for size in BLOCKS)]


def allowed(version: int) -> str:
    """Return the rules that accept ports which are open to all sources."""
    return _lines(_by_port(version, "daddr", "allow", "goto permit"))


def peer_ports(version: int) -> str:
    """Return jumps to chains for single ports and for each size of block: each such chain has its own look-up key."""
    return _lines(_gated(version, "daddr", "peer_ports", "from"))


def egress_allow(version: int, passes: str) -> str:
    """Return the rules for what an egress-restricted container may initiate; `passes` is the verdict."""
    return _lines(
        [
            *_by_port(version, "saddr", "egress_allow", passes),
            *_gated(version, "saddr", "egress_peer_ports", "egress_to"),
        ]
    )


def egress_host(version: int, passes: str) -> str:
    """Return the rules for packets from containers to ports of the host."""
    return _lines(_by_port(version, "saddr", "egress_host", passes))


def _gated(version: int, end: str, gate: str, chain: str) -> list[str]:
    key = f"{_IP[version]} {end} . meta l4proto . "
    exact = f"{key}th dport @{gate}{version} jump {chain}{version}"
    return [
        exact,
        *(f"{key}{block_expression(n)} @{gate}{version}_blocks jump {chain}{version}_{n}" for n in BLOCKS),
    ]


def peer_chains(version: int, chain: str, verdict: str) -> str:
    """Return the chains that the rules of `_gated` jump to: they look up the source, or the destination."""
    near, far = ("daddr", "saddr") if chain == "from" else ("saddr", "daddr")
    chains = []
    for size in (1, *BLOCKS):
        port = "th dport" if size == 1 else block_expression(size)
        name = f"{chain}{version}" + ("" if size == 1 else "_blocks")
        key = f"{_IP[version]} {near} . meta l4proto . {port} . "
        rules = [f"{key}{length_and_prefix(version, n, far)} @{name} {verdict}" for n in LENGTHS[version]]
        chains.append(f"\tchain {chain}{version}{'' if size == 1 else f'_{size}'} {{\n{_lines(rules)}\n\t}}\n")
    return "\n".join(chains)


def host_from(version: int) -> str:
    """Return the rules for sources that may reach a docker-proxy port, on every address of the host or on one."""
    ip, proto = _IP[version], "meta l4proto . th dport . "
    rules = []
    for key, name in ((proto, f"host_from{version}"), (f"{ip} daddr . {proto}", f"from{version}")):
        rules += [f"{key}{length_and_prefix(version, n)} @{name} goto accept_host" for n in LENGTHS[version]]
    return _lines(rules)


def bans(*, nets: bool) -> str:
    """Return the rules that drop packets from and to banned addresses."""
    rules = []
    for version, ip in _IP.items():
        for end in ("saddr", "daddr"):
            if nets:
                rules += [f"{masked(version, n, end)} @banned{version}_{n} goto deny" for n in BAN_LENGTHS[version]]
            else:
                rules.append(f"{ip} {end} @banned{version} goto deny")
    return _lines(rules)


def quarantine(version: int) -> str:
    """Return the rules that drop packets of cut flows; each packet renews the timeout."""
    rules = []
    for name in QUARANTINE_SETS[version]:
        key = " . ".join(spec_of(name).key)
        rules.append(f"{key} @{name} update @{name} {{ {key} timeout {sets.QUARANTINE_SECONDS}s }} goto deny")
    return _lines(rules)


def rate_limit(version: int) -> str:
    """Return jumps to each chain for the port or a block that contains it; each of these chains may drop the packet."""
    key = f"{_IP[version]} daddr . meta l4proto . "
    blocks = [f"{key}{block_expression(size)} vmap @rate_limit{version}_blocks" for size in BLOCKS]
    return _lines([f"{key}th dport vmap @rate_limit{version}", *blocks])
