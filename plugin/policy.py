"""Networks + endpoints + rules → what each address accepts. Pure.

`accepted` is the whole decision; `verdict` is the reference for one packet, against which the kernel is tested.
"""

from __future__ import annotations

from plugin.model import Address, Endpoint, Guarded, Network, Proto, Published, Rule

#: The floor that needs no configuration: ssh, http (Let's Encrypt's verification), https.
BASE: tuple[Rule, ...] = (Rule("tcp", 22, 22), Rule("tcp", 80, 80), Rule("tcp", 443, 443))


def accepted(
    network: Network | Guarded, endpoint: Endpoint, everywhere: tuple[Rule, ...] = ()
) -> tuple[Rule, ...]:
    """The inbound flows that the endpoint's addresses accept, sorted, besides ICMP.

    Nothing until the endpoint is joined and its container's labels are known and right: an address is closed
    until known. Nothing on an internal network, which nobody from outside reaches. `everywhere` is the setting's.
    """
    if endpoint.container is None or not in_order(network, endpoint):
        return ()
    return tuple(sorted({*BASE, *everywhere, *network.allow, *endpoint.allow, *endpoint.container.allow}))


def in_order(network: Network | Guarded, endpoint: Endpoint) -> bool:
    """False if the endpoint answers on ICMP only.

    On a guarded network nothing can be refused, so a mistake in `fw.allow` opens nothing and leaves the base.
    """
    container = endpoint.container
    if network.internal or not endpoint.joined or container is None:
        return False
    if isinstance(network, Guarded):
        return not any(problem.closes for problem in (*network.problems, *container.problems))
    return not container.problems


def verdict(
    network: Network | Guarded,
    endpoint: Endpoint,
    address: Address,
    proto: Proto,
    port: int,
    everywhere: tuple[Rule, ...] = (),
) -> bool:
    """True if a new flow from outside the network to `address` is let through to the container."""
    if address not in (endpoint.addr4, endpoint.addr6):
        return False
    return opens(accepted(network, endpoint, everywhere), proto, port)


def reachable(
    network: Network | Guarded, endpoint: Endpoint, everywhere: tuple[Rule, ...], published: bool
) -> tuple[Rule, ...]:
    """`accepted`, and what is reached by published ports if `published` says that `-p` itself opens."""
    rules = accepted(network, endpoint, everywhere)
    if not published or not in_order(network, endpoint):
        return rules
    ports = (p for p in endpoint.published if not p.host_ip.is_loopback)
    return (*rules, *(Rule(p.proto, p.container_port, p.container_port) for p in ports))


def closed_ports(
    network: Network | Guarded, endpoint: Endpoint, everywhere: tuple[Rule, ...], published: bool
) -> tuple[Published, ...]:
    """Of the endpoint's published ports those that nobody from outside may reach; who is on the host always may."""
    rules = reachable(network, endpoint, everywhere, published)
    return tuple(
        p for p in endpoint.published if not p.host_ip.is_loopback and not opens(rules, p.proto, p.container_port)
    )


def opens(rules: tuple[Rule, ...], proto: Proto, port: int) -> bool:
    return any(rule.proto == proto and rule.first <= port <= rule.last for rule in rules)
