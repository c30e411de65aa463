"""libnetwork's JSON ↔ our nouns. Pure. Source: moby libnetwork/docs/remote.md and libnetwork/drivers/remote/api.

Docker's JSON is checked like anybody's: what is missing or of a wrong type becomes an FwError that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from plugin import jsonio, protocols
from plugin.labels import parser
from plugin.model import Address, Endpoint, FwError, Network, PortBinding

_GENERIC = "com.docker.network.generic"
_BRIDGE = "com.docker.network.bridge."


def identifier(body: Any, key: str) -> str:
    """A Docker ID out of a request. Raises FwError when missing or not one."""
    value: str = _read(jsonio.text, body, key)
    if not jsonio.ID.fullmatch(value):
        raise FwError(f"{key} {value[:80]!r} is not an ID of Docker's")
    return value


def create_network(body: Any, default_bridge: Callable[[str], str]) -> Network:
    """CreateNetwork's request. Raises FwError naming the option at fault, every label mistake at once."""
    network_id = identifier(body, "NetworkID")
    options = body.get("Options") or {}
    if not isinstance(options, dict):
        raise FwError("Options must be an object")
    generic = options.get(_GENERIC) or {}
    if not isinstance(generic, dict):
        raise FwError(f"Options.{_GENERIC} must be an object")
    opened = parser.parse(generic, "network option ")
    if opened.problems:
        raise FwError("; ".join(map(str, opened.problems)))
    gateway4 = _gateway(body, "IPv4Data")
    gateway6 = _gateway(body, "IPv6Data")
    if gateway4 is None and gateway6 is None:
        raise FwError("the network has no addresses at all; give it a --subnet, or --ipv6")
    return Network(
        id=network_id,
        bridge=_bridge_option(generic, default_bridge(network_id)),
        gateway4=gateway4 if isinstance(gateway4, IPv4Interface) else None,
        gateway6=gateway6 if isinstance(gateway6, IPv6Interface) else None,
        internal=_flag(options, "com.docker.network.internal", False),
        mtu=_mtu(generic, 1280 if gateway6 else 68),
        masquerade=_masquerade(generic),
        host_ip=_host_ip(generic),
        iface_prefix=_prefix(generic, "com.docker.network.container_iface_prefix", "eth"),
        spec=opened.spec,
    )


def create_endpoint(body: Any) -> Endpoint:
    """CreateEndpoint's request. Raises FwError."""
    endpoint_id, network_id = identifier(body, "EndpointID"), identifier(body, "NetworkID")
    interface = body.get("Interface") or {}
    if not isinstance(interface, dict):
        raise FwError("Interface must be an object")
    options = _options(body)
    opened = parser.parse(options, "driver option ")
    if opened.problems:
        raise FwError("; ".join(map(str, opened.problems)))
    address4 = _interface(interface, "Address", IPv4Interface)
    address6 = _interface(interface, "AddressIPv6", IPv6Interface)
    if address4 is None and address6 is None:
        raise FwError("Docker gave the endpoint no address; docker-fw needs an IPAM driver that does")
    mac = interface.get("MacAddress") or ""
    if not isinstance(mac, str) or (mac and not jsonio.MAC.fullmatch(mac)):
        raise FwError(f"MacAddress {mac!r} is not a MAC address, like 02:42:ac:12:00:02")
    return Endpoint(
        id=endpoint_id,
        network_id=network_id,
        addr4=address4.ip if address4 else None,
        addr6=address6.ip if address6 else None,
        mac=mac.lower(),
        spec=opened.spec,
    )


def port_bindings(body: Any) -> tuple[PortBinding, ...]:
    """The published ports of a request's Options (libnetwork/types: PortBinding). Raises FwError."""
    listed = _options(body).get("com.docker.network.portmap") or []
    if not isinstance(listed, list):
        raise FwError("com.docker.network.portmap must be a list")
    return tuple(map(_binding, listed))


def _binding(raw: Any) -> PortBinding:
    proto = protocols.name_of(_read(jsonio.integer, raw, "Proto"))
    if proto not in protocols.PUBLISHABLE:
        right = protocols.listed(protocols.PUBLISHABLE, "and")
        raise FwError(f"cannot publish IP protocol {raw['Proto']!r}: only {right} can be published")
    host_ip = raw.get("HostIP") or ""
    try:
        ip = jsonio.address(host_ip) if host_ip else None
    except ValueError as error:
        raise FwError(f"cannot publish on host address {host_ip!r}: {error}") from error
    port = _read(jsonio.integer, raw, "Port")
    first = raw.get("HostPort") or 0
    last = raw.get("HostPortEnd") or first
    for number in (port, first, last):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 65535:
            raise FwError(f"{number!r} is not a port (1-65535)")
    if port == 0 or last < first:
        raise FwError(f"cannot publish container port {port} on host ports {first}-{last}")
    return PortBinding(proto, port, ip, first, last)


def _options(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise FwError("the request must be an object")
    options = body.get("Options") or {}
    if not isinstance(options, dict):
        raise FwError("Options must be an object")
    # `docker network connect --driver-opt` arrives nested on some engines, flat on others.
    nested = options.get(_GENERIC)
    return {**(nested if isinstance(nested, dict) else {}), **options}


def _gateway(body: Any, key: str) -> IPv4Interface | IPv6Interface | None:
    listed = body.get(key) or []
    if not isinstance(listed, list):
        raise FwError(f"{key} must be a list")
    if not listed:
        return None
    if len(listed) > 1:
        raise FwError(f"{key} has {len(listed)} subnets; a network of docker-fw has one for each family")
    kind = IPv4Interface if key == "IPv4Data" else IPv6Interface
    if not isinstance(listed[0], dict):
        raise FwError(f"{key} must hold objects")
    gateway: IPv4Interface | IPv6Interface | None = _interface(listed[0], "Gateway", kind)
    if gateway is None:
        raise FwError(f"{key} has no gateway; give one with --gateway")
    return gateway


def _interface(raw: dict[str, Any], key: str, kind: type[IPv4Interface] | type[IPv6Interface]) -> Any:
    value = raw.get(key)
    if not value:
        return None
    try:
        found = jsonio.interface(value)
    except ValueError as error:
        raise FwError(f"{key}: {error}") from error
    if not isinstance(found, kind):
        raise FwError(f"{key}: {value} is of the wrong family")
    return found


def _bridge_option(generic: dict[str, Any], default: str) -> str:
    name = generic.get(_BRIDGE + "name") or default
    if not isinstance(name, str) or not jsonio.INTERFACE_NAME.fullmatch(name):
        raise FwError(f"{_BRIDGE}name={name!r}: at most 15 letters, digits, '_', '.' or '-'")
    return name


def _prefix(generic: dict[str, Any], key: str, default: str) -> str:
    value = generic.get(key) or default
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,11}", value):
        raise FwError(f"{key}={value!r}: at most 12 letters and digits, as in eth")
    return value


def _mtu(generic: dict[str, Any], least: int) -> int:
    """`least`: RFC 791 and, with IPv6, RFC 8200 section 5; on a link of less the kernel has no IPv6 at all."""
    value = generic.get("com.docker.network.driver.mtu") or "1500"
    if not re.fullmatch(r"[0-9]{1,5}", str(value)) or not least <= int(str(value)) <= 65535:
        raise FwError(f"com.docker.network.driver.mtu={value!r}: must be a number of bytes, {least}-65535, like 1500")
    return int(str(value))


def _masquerade(generic: dict[str, Any]) -> bool:
    for key in ("gateway_mode_ipv4", "gateway_mode_ipv6"):
        mode = generic.get(_BRIDGE + key) or ""
        right = ("", "nat", "routed") if key.endswith("4") else ("", "routed")
        if mode not in right:
            hint = "IPv6 is always routed" if key.endswith("6") else "nat or routed"
            raise FwError(f"{_BRIDGE}{key}={mode!r} is not possible on a network of docker-fw: {hint}")
    if not _flag(generic, _BRIDGE + "enable_icc", True):
        raise FwError(f"{_BRIDGE}enable_icc=false is not possible: containers of one network of docker-fw talk freely")
    routed = generic.get(_BRIDGE + "gateway_mode_ipv4") == "routed"
    return not routed and _flag(generic, _BRIDGE + "enable_ip_masquerade", True)


def _host_ip(generic: dict[str, Any]) -> Address | None:
    value = generic.get(_BRIDGE + "host_binding_ipv4") or ""
    try:
        return jsonio.address(value) if value else None
    except ValueError as error:
        raise FwError(f"{_BRIDGE}host_binding_ipv4={value!r}: {error}") from error


def _flag(options: dict[str, Any], key: str, default: bool) -> bool:
    value = options.get(key, default)
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "t"):
        return True
    if str(value).lower() in ("false", "0", "f"):
        return False
    raise FwError(f"{key}={value!r}: must be true or false")


def _read(read: Callable[[Any, str], Any], body: Any, key: str) -> Any:
    try:
        return read(body, key)
    except ValueError as error:
        raise FwError(str(error)) from error
