"""Convert requests of libnetwork's NetworkDriver protocol to Network, Endpoint, PortBinding. Pure.

Source: moby libnetwork/docs/remote.md and libnetwork/drivers/remote/api. Every function raises an FwError that names
the wrong key and value: Docker shows it to the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, TypeVar

from plugin import jsonio, protocols
from plugin.labels import parser
from plugin.model import Endpoint, FwError, Network, PolicySpec, PortBinding

_GENERIC = "com.docker.network.generic"
_BRIDGE = "com.docker.network.bridge."
_NAME = "at most 15 letters, digits, '_', '.' or '-'"
_IFACE_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,11}")
_PREFIX = "at most 12 letters and digits, as in eth"
Family = TypeVar("Family", IPv4Interface, IPv6Interface)


def identifier(body: Any, key: str) -> str:
    """Return a Docker ID from a request."""
    return jsonio.matching(body, key, jsonio.ID, "a Docker ID")


def create_network(body: Any, default_bridge: Callable[[str], str]) -> Network:
    """Return the network of a CreateNetwork request. One error lists all mistakes in the labels."""
    network_id = identifier(body, "NetworkID")
    options = jsonio.mapping(body, "Options", default={})
    generic = jsonio.mapping(options, _GENERIC, default={})
    spec = _spec(generic, "network option ")
    gateway4 = _gateway(body, "IPv4Data", IPv4Interface)
    gateway6 = _gateway(body, "IPv6Data", IPv6Interface)
    if gateway4 is None and gateway6 is None:
        raise FwError("the network has no subnet; give it a --subnet, or --ipv6")
    return Network(
        id=network_id,
        bridge=_text_option(generic, _BRIDGE + "name", jsonio.INTERFACE_NAME, _NAME) or default_bridge(network_id),
        gateway4=gateway4,
        gateway6=gateway6,
        internal=jsonio.switch(options, "com.docker.network.internal", False),
        mtu=_mtu(generic, 1280 if gateway6 else 68),
        masquerade=_masquerade(generic),
        host_ip=jsonio.stated(generic, _BRIDGE + "host_binding_ipv4", jsonio.address),
        iface_prefix=_text_option(generic, "com.docker.network.container_iface_prefix", _IFACE_PREFIX, _PREFIX)
        or "eth",
        spec=spec,
    )


def create_endpoint(body: Any) -> Endpoint:
    """Return the endpoint of a CreateEndpoint request."""
    endpoint_id, network_id = identifier(body, "EndpointID"), identifier(body, "NetworkID")
    interface = jsonio.mapping(body, "Interface", default={})
    spec = _spec(_options(body), "driver option ")
    address4 = jsonio.stated(interface, "Address", jsonio.only(IPv4Interface, jsonio.interface))
    address6 = jsonio.stated(interface, "AddressIPv6", jsonio.only(IPv6Interface, jsonio.interface))
    if address4 is None and address6 is None:
        raise FwError("Docker gave the endpoint no address; docker-fw needs an IPAM driver that does")
    mac = _text_option(interface, "MacAddress", jsonio.MAC, "a MAC address, like 02:42:ac:12:00:02")
    return Endpoint(
        id=endpoint_id,
        network_id=network_id,
        addr4=address4.ip if address4 else None,
        addr6=address6.ip if address6 else None,
        mac=mac.lower(),
        spec=spec,
    )


def port_bindings(body: Any) -> tuple[PortBinding, ...]:
    """Return the published ports of a request's Options (libnetwork/types: PortBinding)."""
    return tuple(map(_binding, jsonio.items(_options(body), "com.docker.network.portmap", default=[])))


def _binding(raw: Any) -> PortBinding:
    proto = protocols.name_of(jsonio.integer(raw, "Proto"))
    if proto not in protocols.PUBLISHABLE:
        right = protocols.listed(protocols.PUBLISHABLE, "and")
        raise FwError(f"cannot publish IP protocol {raw['Proto']!r}: only {right} can be published")
    port = jsonio.port(raw, "Port")
    # 0 is "any port", which Docker also writes as null or omits.
    first, last = (jsonio.within(raw, key, 0, 65535) if raw.get(key) else 0 for key in ("HostPort", "HostPortEnd"))
    last = last or first
    if last < first:
        raise FwError(f"cannot publish container port {port} on host ports {first}-{last}")
    return PortBinding(proto, port, jsonio.stated(raw, "HostIP", jsonio.address), first, last)


def _options(body: Any) -> dict[str, Any]:
    options = jsonio.mapping(body, "Options", default={})
    # `docker network connect --driver-opt` arrives nested on some engines, flat on others.
    nested = options.get(_GENERIC)
    return {**(nested if isinstance(nested, dict) else {}), **options}


def _spec(options: Mapping[str, Any], where: str) -> PolicySpec:
    parsed = parser.parse(options, where)
    if parsed.problems:
        raise FwError("; ".join(map(str, parsed.problems)))
    return parsed.spec


def _gateway(body: Any, key: str, kind: type[Family]) -> Family | None:
    subnets = jsonio.items(body, key, default=[])
    if not subnets:
        return None
    if len(subnets) > 1:
        raise FwError(f"{key} has {len(subnets)} subnets; a docker-fw network has one of each family")
    gateway = jsonio.stated(subnets[0], "Gateway", jsonio.only(kind, jsonio.interface), where=key)
    if gateway is None:
        raise FwError(f"{key} has no gateway; give one with --gateway")
    return gateway


def _text_option(options: Mapping[str, Any], key: str, pattern: re.Pattern[str], right: str) -> str:
    """Return an option's text; "" if there is none, which Docker writes as a missing key, null or ""."""
    return jsonio.matching(options, key, pattern, right) if options.get(key) else ""


def _mtu(generic: Mapping[str, Any], least: int) -> int:
    """Return the MTU.

    `least`: RFC 791 and, with IPv6, RFC 8200 section 5; with a lower MTU the kernel has no IPv6 on a link.
    """
    key = "com.docker.network.driver.mtu"
    value = str(generic.get(key) or "1500")
    if not re.fullmatch(r"[0-9]{1,5}", value) or not least <= int(value) <= 65535:
        raise jsonio.wrong(generic, key, f"a number of bytes, {least}-65535, like 1500")
    return int(value)


def _masquerade(generic: Mapping[str, Any]) -> bool:
    mode4, mode6 = (generic.get(f"{_BRIDGE}gateway_mode_ipv{version}") or "" for version in (4, 6))
    if mode4 not in ("", "nat", "routed"):
        raise jsonio.wrong(generic, _BRIDGE + "gateway_mode_ipv4", "nat or routed on a docker-fw network")
    if mode6 not in ("", "routed"):
        right = "routed (IPv6 is always routed on docker-fw networks)"
        raise jsonio.wrong(generic, _BRIDGE + "gateway_mode_ipv6", right)
    if not jsonio.switch(generic, _BRIDGE + "enable_icc", True):
        raise FwError(f"{_BRIDGE}enable_icc=false is not possible: containers on one docker-fw network talk freely")
    return mode4 != "routed" and jsonio.switch(generic, _BRIDGE + "enable_ip_masquerade", True)
