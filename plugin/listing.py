"""What Docker's API lists → networks and endpoints that docker-fw guards. Pure.

Docker's JSON is read with care: what is not as it should be raises ValueError that names it, and stays closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

from plugin import labels
from plugin.model import Address, Container, Endpoint, Guarded, Published
from plugin.record import address, boolean, interface_name, only, port, protocol, text

_BRIDGE = "com.docker.network.bridge."


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: `what` is "network connect", `id` the network's (or the container's), `container` who it was."""

    what: str
    id: str = ""
    container: str = ""
    kind: str = ""


def network(raw: Any) -> Guarded | None:
    """A network as `GET /networks` lists it, if Docker's bridge driver made it. Raises ValueError.

    Options: moby, daemon/libnetwork/drivers/bridge/bridge_linux.go (parseNetworkGenericOptions).
    """
    if text(raw, "Driver") != "bridge":
        return None
    identity, options = text(raw, "Id"), raw.get("Options") or {}
    bridge = options.get(_BRIDGE + "name") or f"br-{identity[:12]}"
    configs = (raw.get("IPAM") or {}).get("Config") or []
    said = labels.parse(options, "network option ")
    return Guarded(
        id=identity,
        name=text(raw, "Name"),
        bridge=interface_name({"bridge name": bridge}, "bridge name"),
        subnets=tuple(ip_network(text(config, "Subnet"), strict=False) for config in configs if config.get("Subnet")),
        internal=boolean(raw, "Internal") if "Internal" in raw else False,
        # As Go's strconv.ParseBool reads it.
        flat=str(options.get(_BRIDGE + "enable_icc")) not in ("0", "f", "F", "false", "FALSE", "False"),
        mode4=options.get(_BRIDGE + "gateway_mode_ipv4") or "nat",
        mode6=options.get(_BRIDGE + "gateway_mode_ipv6") or "nat",
        allow=said.allow,
        problems=said.problems,
    )


def bridges(raw: Any) -> tuple[frozenset[str], bool]:
    """The names of all bridges of Docker's, from `GET /networks`, and whether nothing was left out of it.

    Whatever else is wrong with a network: its bridge is Docker's.
    """
    names, complete = set(), True
    for each in raw:
        try:
            if each["Driver"] == "bridge":
                name = (each.get("Options") or {}).get(_BRIDGE + "name") or f"br-{each['Id'][:12]}"
                names.add(name)
                complete &= isinstance(name, str)
        except (KeyError, TypeError, AttributeError):
            complete = False
    return frozenset(name for name in names if isinstance(name, str)), complete


def endpoints(raw: Any, container: Container) -> Iterator[Endpoint]:
    """The endpoints of a running container, as `GET /containers/json` lists it. Raises ValueError."""
    ports = tuple(published(raw))
    for attached in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).values():
        if isinstance(attached, dict) and attached.get("EndpointID"):
            yield Endpoint(
                id=text(attached, "EndpointID"),
                network_id=text(attached, "NetworkID"),
                addr4=_one(attached.get("IPAddress"), IPv4Address),
                addr6=_one(attached.get("GlobalIPv6Address"), IPv6Address),
                joined=True,
                container=container,
                published=ports,
            )


def published(raw: Any) -> Iterator[Published]:
    """The published ports of a container, as `GET /containers/json` lists it. Raises ValueError."""
    for each in raw.get("Ports") or []:
        if each.get("PublicPort"):
            host_ip: Address = address(each.get("IP") or "0.0.0.0")
            yield Published(protocol(each, "Type"), host_ip, port(each, "PublicPort"), port(each, "PrivatePort"))


def attached(raw: Mapping[str, Any], container: Container, ports: tuple[Published, ...] = ()) -> Endpoint | None:
    """A container's endpoint on a network, as `GET /networks/ID` shows it, which has no ports. Raises ValueError.

    Until the container's sandbox is told, its entry has the key `ep-<EndpointID>` and the container's name.
    """
    for key, value in (raw.get("Containers") or {}).items():
        starting = key.startswith("ep-") and value.get("Name") == container.name
        if key == container.id or starting:
            return Endpoint(
                id=text(value, "EndpointID"),
                network_id=text(raw, "Id"),
                addr4=_one(str(value.get("IPv4Address") or "").partition("/")[0], IPv4Address),
                addr6=_one(str(value.get("IPv6Address") or "").partition("/")[0], IPv6Address),
                joined=True,
                container=container,
                published=ports,
            )
    return None


def apart(raw: Mapping[str, Any]) -> str:
    """Why a container has no network of its own, in words for people; "" if it has one."""
    mode = str((raw.get("HostConfig") or {}).get("NetworkMode") or "")
    if mode == "host":
        return "has the host's network: it answers like any program of the host"
    if mode.startswith("container:"):
        return f"shares the network of {mode[10:22]}: that container's labels count, not its own"
    return ""


def _one(value: Any, kind: Any) -> Any:
    return only(kind, address)(value) if value else None


def event(raw: Mapping[str, Any]) -> Event:
    """An event as `GET /events` tells it. Never raises: what is not there is empty."""
    actor: Any = raw.get("Actor") or {}
    told: Any = actor.get("Attributes") or {} if isinstance(actor, dict) else {}
    told = told if isinstance(told, dict) else {}
    actor = actor if isinstance(actor, dict) else {}
    return Event(
        f"{raw.get('Type')} {raw.get('Action')}", str(actor.get("ID") or ""), str(told.get("container") or ""),
        str(told.get("type") or ""),
    )  # fmt: skip
