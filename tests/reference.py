"""Write the generated parts of LABELS.md: the keys, and the elements of labels. `python -m tests.reference`."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from plugin.labels.keys import KEYS
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, Endpoint
from plugin.nftables.document import element_text
from plugin.nftables.elements import address_elements
from plugin.nftables.sets import Element
from plugin.policy.decide import of
from plugin.policy.facts import ElementOwner, Kind
from plugin.policy.peers import PeerIndex, Who, names

FILE = Path(__file__).resolve().parent.parent / "LABELS.md"
ADDRESS = IPv6Address("2001:db8:1::2")
PEERS = (IPv6Address("2001:db8:1::7"), IPv6Address("2001:db8:2::7"))
#: Sets that are the same for every address, whatever its labels.
ALWAYS = ("ingress_drops6", "egress_drops6")
PAIRS: tuple[dict[str, str], ...] = (
    {},
    {"fw.allow": "8080, 53/udp"},
    {"fw.allow": "9000-9100"},
    {"fw.allow": "*/udp, gre"},
    {"fw.allow": "5432 from 2001:db8:5::/48 2001:db8:6::9"},
    {"fw.allow": "6379 from service:api"},
    {"fw.allow": "22 from 2001:db8::/29"},
    {"fw.deny": "22, 80"},
    {"fw.policy": "closed", "fw.allow": "443"},
    {"fw.policy": "open", "fw.deny": "*/udp"},
    {"fw.egress": "none"},
    {"fw.egress": "443, 53/udp to 2001:4860:4860::8888, 8125/udp to host"},
    {"fw.rate": "22 5/minute burst 10"},
)


def keys() -> str:
    return "\n".join(f"| `{key}` | {k.meaning} | {k.values} | {k.default} | `{k.example}` |" for key, k in KEYS.items())


def pairs() -> str:
    return "\n\n".join(map(_pair, PAIRS))


def _pair(labels: dict[str, str]) -> str:
    network = BridgeNetwork("n", "front", "br-front", (IPv6Network("2001:db8:1::/64"),))
    parsed = parse(labels)
    assert not parsed.problems
    container = Container("c", "web", parsed.spec, project="shop")
    directory = PeerIndex()
    for number, peer in enumerate(PEERS):
        directory.put(
            ElementOwner(Kind.ENDPOINT, str(number)),
            Who((peer,), names(Container("", f"api{number}", project="shop", service="api"))),
        )
    policy = of(network, Endpoint("e", "n", addr6=ADDRESS, joined=True, container=container))
    elements = address_elements(network.bridge, ADDRESS, directory.resolved(policy, container))
    restricted = () if policy.egress is None else (Element("egress_restricted", (network.bridge,)),)
    by_set: dict[str, list[str]] = {}
    for element in sorted({*elements, *restricted}, key=lambda e: (e.set, e.key)):
        if element.set not in ALWAYS:
            by_set.setdefault(element.set, []).append(element_text(element))
    spec = "\n".join(f'{key}: "{value}"' for key, value in labels.items()) or "# no label"
    lines = "\n".join(f"{name} {{ {', '.join(texts)} }}" for name, texts in by_set.items())
    return f"```yaml\n{spec}\n```\n```\n{lines}\n```"


def written(text: str) -> str:
    """Return LABELS.md with its generated parts as they should be."""
    head = "| key | meaning | values | default | example |\n|---|---|---|---|---|\n"
    text = re.sub(re.escape(head) + r"(?:\|[^\n]*\n|KEYS\n)*", lambda _: f"{head}{keys()}\n", text)
    start = "A block of ports has its middle port as its key (8192-8207 is 8200). A prefix has its length before it.\n"
    before, _, _ = text.partition(start)
    return f"{before}{start}\n{pairs()}\n"


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
