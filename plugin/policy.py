"""Networks + endpoints + rules → what each address accepts. Pure.

`accepted` is the whole decision; `verdict` is the reference for one packet, against which the kernel is tested.
"""

from __future__ import annotations

from plugin.model import Address, Endpoint, Network, Proto, Rule

#: The floor that needs no configuration: ssh, http (Let's Encrypt's verification), https.
BASE: tuple[Rule, ...] = (Rule("tcp", 22, 22), Rule("tcp", 80, 80), Rule("tcp", 443, 443))


def accepted(network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    """The inbound flows that the endpoint's addresses accept, sorted, besides ICMP.

    Nothing until the endpoint is joined and its container's labels are known and right: an address is closed
    until known. Nothing on an internal network, which nobody from outside reaches. `everywhere` is the setting's.
    """
    container = endpoint.container
    if network.internal or not endpoint.joined or container is None or container.problems:
        return ()
    return tuple(sorted({*BASE, *everywhere, *network.allow, *endpoint.allow, *container.allow}))


def verdict(
    network: Network,
    endpoint: Endpoint,
    address: Address,
    proto: Proto,
    port: int,
    everywhere: tuple[Rule, ...] = (),
) -> bool:
    """True if a new flow from outside the network to `address` is let through to the container."""
    if address not in (endpoint.addr4, endpoint.addr6):
        return False
    rules = accepted(network, endpoint, everywhere)
    return any(rule.proto == proto and rule.first <= port <= rule.last for rule in rules)
