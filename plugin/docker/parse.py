"""Convert JSON of Docker's API to networks, endpoints, published ports and events. Pure.

Docker's JSON is not trusted to be well-formed. Each function raises one of MALFORMED, mostly a JsonError that names
the key. Its caller leaves the malformed object out, so it stays closed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from types import MappingProxyType
from typing import Any

from plugin.docker import container_labels
from plugin.docker.bounded_json import Cut
from plugin.docker.container_labels import ContainerLabels
from plugin.jsonio import MAC, address, boolean, interface_name, only, port, published_protocol, text
from plugin.labels import parser
from plugin.model import Address, BridgeNetwork, Container, Endpoint, PolicySpec, Published

_BRIDGE = "com.docker.network.bridge."
#: A container with more labels than this is kept without those that are never read.
_MANY = 100
#: The errors that reading raises if Docker's JSON is malformed.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
#: Drivers of networks whose packets never pass the host's rules.
BYPASSING = {"macvlan", "ipvlan"}
CONNECTING = {"network connect", "network disconnect"}
#: The action of an event that was too large to be read, and whose beginning does not identify it.
UNREAD = "too large event"
#: Events that name a container or a network, which docker-fw acts on.
ABOUT = {
    UNREAD,
    *CONNECTING,
    "network destroy",
    *(f"container {what}" for what in ("create", "start", "die", "destroy")),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One of Docker's events.

    `action`: with its type, as "network connect". `id`: the network's or the container's ID. `container`: for a
    network's event, the container's ID. `network_type`: the network's driver. `name`: the container's name, if its
    event has one.
    """

    action: str
    id: str = ""
    container: str = ""
    network_type: str = ""
    name: str = ""

    @property
    def complete(self) -> bool:
        """False if an ID is missing in an event that docker-fw acts on."""
        return bool(self.id and (self.container or self.action not in CONNECTING)) or self.action not in ABOUT


def network(raw: Any) -> BridgeNetwork | None:
    """Return a network as `GET /networks` lists it; None if its driver is not bridge.

    Options: moby, daemon/libnetwork/drivers/bridge/bridge_linux.go (parseNetworkGenericOptions).
    """
    if text(raw, "Driver") != "bridge":
        return None
    identity, options = text(raw, "Id"), raw.get("Options") or {}
    bridge = options.get(_BRIDGE + "name") or f"br-{identity[:12]}"
    configs = (raw.get("IPAM") or {}).get("Config") or []
    spec = parser.parse(options, "network option ")
    return BridgeNetwork(
        id=identity,
        name=text(raw, "Name"),
        bridge=interface_name({"bridge name": bridge}, "bridge name"),
        subnets=tuple(ip_network(text(config, "Subnet"), strict=False) for config in configs if config.get("Subnet")),
        internal=boolean(raw, "Internal") if "Internal" in raw else False,
        # As Go's strconv.ParseBool reads it.
        flat=str(options.get(_BRIDGE + "enable_icc")) not in ("0", "f", "F", "false", "FALSE", "False"),
        mode4=options.get(_BRIDGE + "gateway_mode_ipv4") or "nat",
        mode6=options.get(_BRIDGE + "gateway_mode_ipv6") or "nat",
        spec=spec.spec,
        problems=spec.problems,
    )


def bridges(raw: Any) -> tuple[frozenset[str], bool]:
    """Return the names of the bridges of Docker networks, and True if every network was understood.

    The names are from `GET /networks`. The bridge of a network that is malformed otherwise is still included.
    """
    names, complete = set(), True
    for each in raw:
        try:
            if each["Driver"] == "bridge":
                name = (each.get("Options") or {}).get(_BRIDGE + "name") or f"br-{each['Id'][:12]}"
                names.add(name)
                complete &= isinstance(name, str)
        except MALFORMED:
            complete = False
    return frozenset(name for name in names if isinstance(name, str)), complete


def endpoints(
    raw: Any,
    labels: ContainerLabels,
    keys: Mapping[str, str] = MappingProxyType({}),
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Endpoint]:
    """Return the endpoints of a running container, as `GET /containers/json` lists it.

    `keys`: by network ID, its key in the compose file. `options`: by network name, the attachment's `driver_opts`.
    """
    return list(_endpoints(raw, labels, keys, options, tuple(published(raw))))


def _endpoints(
    raw: Any,
    labels: ContainerLabels,
    keys: Mapping[str, str],
    options: Mapping[str, Mapping[str, Any]],
    ports: tuple[Published, ...],
) -> Iterator[Endpoint]:
    for name, attached in ((raw.get("NetworkSettings") or {}).get("Networks") or {}).items():
        if isinstance(attached, dict) and attached.get("EndpointID"):
            key = keys.get(attached.get("NetworkID") or "", "")
            container, spec = attachment(labels, name, key, options.get(name) or {})
            yield Endpoint(
                id=text(attached, "EndpointID"),
                network_id=text(attached, "NetworkID"),
                addr4=_one(attached.get("IPAddress"), IPv4Address),
                addr6=_one(attached.get("GlobalIPv6Address"), IPv6Address),
                mac=_mac(attached),
                joined=True,
                spec=spec,
                container=container,
                published=ports,
            )


def identity(raw: Any) -> str:
    """Return the ID of a listed container or network."""
    return text(raw, "Id")


def needed(raw: Any) -> Any:
    """Return a container as `GET /containers/json` lists it, without unread labels if it has many labels.

    The whole list is kept for a moment, and each of ten thousand labels takes more memory than it has characters.
    """
    labels = raw.get("Labels") if isinstance(raw, dict) else None
    if not isinstance(labels, dict) or len(labels) <= _MANY:
        return raw
    return {**raw, "Labels": {key: value for key, value in labels.items() if container_labels.is_relevant(key)}}


def many(raw: Any) -> list[Any]:
    """Return a list from Docker. Raises ValueError if it is no list, or if no element has an ID."""
    if not isinstance(raw, list) or (raw and not any(map(_has_id, raw))):
        raise ValueError(f"not a list of Docker objects: {raw!r:.60}")
    return raw


def not_running(raw: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the IDs of the listed containers that do not run, and may start at any moment."""
    return frozenset(each["Id"] for each in raw if each.get("State") not in ("running", "paused"))


def all_published(raw: Iterable[Any]) -> frozenset[Published] | None:
    """Return the published ports of all these listed containers; None if some are malformed."""
    try:
        return frozenset(port for each in raw for port in published(each))
    except MALFORMED:
        return None


def _has_id(raw: Any) -> bool:
    return bool(raw.get("Id") if isinstance(raw, dict) else isinstance(raw, Cut) and raw.id)


def endpoint_ids(raw: Any) -> tuple[str, ...]:
    """Return the IDs of a listed container's endpoints. They change with each start."""
    networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    return tuple(sorted(str(each.get("EndpointID")) for each in networks.values() if isinstance(each, dict)))


def driver_options(raw: Any) -> dict[str, Mapping[str, Any]]:
    """Return by network name the `driver_opts` of a container's attachments, as `GET /containers/ID/json` shows it."""
    networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    found = {name: each.get("DriverOpts") or {} for name, each in networks.items() if isinstance(each, dict)}
    return {str(name): options for name, options in found.items() if isinstance(options, dict)}


def attachment(
    labels: ContainerLabels, network: str, key: str, options: Mapping[str, Any]
) -> tuple[Container, PolicySpec]:
    """Return the container with its policy on that network, and the policy of its attachment (`driver_opts`).

    A mistake in the attachment counts as one of the container's, because on Docker networks nothing can be refused.
    """
    container, parsed = container_labels.on_network(labels, network, key), parser.parse(options, "driver option ")
    if parsed.problems:
        container = dataclasses.replace(container, problems=(*container.problems, *parsed.problems))
    return container, parsed.spec


def endpoint_name(network: Mapping[str, Any], endpoint_id: str) -> str | None:
    """Return the name of an endpoint's container, from `GET /networks/ID`; None if the endpoint is not there.

    The entry's key is `ep-<EndpointID>` until Docker reports the container's sandbox, then the container's ID.
    """
    for key, value in (network.get("Containers") or {}).items():
        if key == f"ep-{endpoint_id}" or value.get("EndpointID") == endpoint_id:
            return str(value["Name"]) or None
    return None


def published(raw: Any) -> Iterator[Published]:
    """Yield the published ports of a container, as `GET /containers/json` lists it."""
    for each in raw.get("Ports") or []:
        if each.get("PublicPort"):
            host_ip: Address = address(each.get("IP") or "0.0.0.0")
            yield Published(
                published_protocol(each, "Type"), host_ip, port(each, "PublicPort"), port(each, "PrivatePort")
            )


def attached(
    raw: Mapping[str, Any],
    labels: ContainerLabels,
    options: Mapping[str, Any],
    listed: Mapping[str, Any] = MappingProxyType({}),
) -> Endpoint | None:
    """Return a container's endpoint on a network, as `GET /networks/ID` shows it; None if it is not there.

    That answer has no ports: they are in `listed`, the container as `GET /containers/json` lists it. The entry's key
    is `ep-<EndpointID>` until Docker reports the container's sandbox, then the container's ID.
    """
    for key, value in (raw.get("Containers") or {}).items():
        starting = key.startswith("ep-") and value.get("Name") == labels.name
        if key == labels.id or starting:
            container, spec = attachment(labels, text(raw, "Name"), container_labels.compose_key(raw), options)
            return Endpoint(
                id=text(value, "EndpointID"),
                network_id=text(raw, "Id"),
                addr4=_one(str(value.get("IPv4Address") or "").partition("/")[0], IPv4Address),
                addr6=_one(str(value.get("IPv6Address") or "").partition("/")[0], IPv6Address),
                mac=_mac(value),
                joined=True,
                spec=spec,
                container=container,
                published=tuple(published(listed)),
                unlisted=not listed,
            )
    return None


def bypassing(raw: Any) -> str:
    """Return the driver of a network as `GET /networks` lists it, if its packets bypass the host's rules; "" if not."""
    driver = text(raw, "Driver")
    return driver if driver in BYPASSING else ""


def not_guarded(raw: Mapping[str, Any], drivers: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return why docker-fw does not filter a container, or not on all its networks, for people; "" if it does.

    `raw`: the container as `GET /containers/json` lists it. `drivers`: by network ID, the driver that is `bypassing`.
    """
    mode = str((raw.get("HostConfig") or {}).get("NetworkMode") or "")
    if mode == "host":
        return "has the host's network, which docker-fw does not filter"
    if mode.startswith("container:"):
        return f"shares the network of {mode[10:22]}: that container's labels apply, not its own"
    networks = (raw.get("NetworkSettings") or {}).get("Networks") or {}
    for name, attached in networks.items():
        driver = drivers.get(attached.get("NetworkID") or "") if isinstance(attached, dict) else None
        if driver:
            return (
                f"is on the {driver} network {name}, which docker-fw does not filter: it bypasses the host's firewall"
            )
    return ""


def _mac(raw: Mapping[str, Any]) -> str:
    """Return an endpoint's MAC; "" if Docker does not report one. No decision depends on it."""
    found = str(raw.get("MacAddress") or "")
    return found.lower() if MAC.fullmatch(found) else ""


def _one(value: Any, kind: Any) -> Any:
    return only(kind, address)(value) if value else None


def event(raw: Mapping[str, Any] | None) -> Event:
    """Return an event of `GET /events`, or of the fields that `events.objects` yields.

    Never raises: missing fields are empty.
    """
    if raw is None:
        return Event(UNREAD)
    actor: Any = raw.get("Actor") or {}
    actor = actor if isinstance(actor, dict) else {}
    attributes: Any = actor.get("Attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    return Event(
        f"{raw.get('Type')} {raw.get('Action')}",
        str(actor.get("ID") or ""),
        str(attributes.get("container") or ""),
        str(attributes.get("type") or ""),
        str(attributes.get("name") or "") if raw.get("Type") == "container" else "",
    )
