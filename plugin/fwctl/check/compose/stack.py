"""The services and networks of a merged compose project as docker-fw would see them, and mistakes in them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from plugin.fwctl.check.compose.model import Notes, Place, Value
from plugin.fwctl.check.compose.ports import Port, ports

NOWHERE = Place("")
#: The longest chain of services that share a network: a longer one is a circle.
MAX_SHARING = 16
#: How many names are searched for one that is similar to a wrong one.
MAX_NAMES = 200
_BRIDGE = "com.docker.network.bridge."
#: Drivers whose networks docker-fw does not protect, and why.
_APART = {
    "host": "the host's network: not protected",
    "none": "no network",
    "macvlan": "not protected: macvlan bypasses the host's firewall",
    "ipvlan": "not protected: ipvlan bypasses the host's firewall",
    "overlay": "not protected: containers on an overlay talk freely, across nodes too",
}


@dataclass(frozen=True, slots=True)
class Net:
    """A network: its name in the file and Docker's full name.

    `kind`: "own" (docker-fw's driver), "guarded" (Docker's bridge) or "apart" (not protected), and then `why`. `flat`:
    containers talk freely. `direct`: containers can be reached on their own addresses, or it is unknown.
    """

    key: str
    name: str
    kind: str = "guarded"
    why: str = ""
    internal: bool = False
    flat: bool = True
    direct: bool = False
    place: Place = NOWHERE
    options: Mapping[str, Value] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The names that `fw.network.NAME` may use."""
        return frozenset((self.key, self.name))


@dataclass(frozen=True, slots=True)
class Attachment:
    """A service's attachment to a network, with its own driver_opts."""

    net: Net
    options: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Service:
    """`mode`: its network_mode. `container`: the name of its (first) container; `named`: it has a container_name."""

    name: str
    place: Place
    container: str
    named: bool
    labels: Mapping[str, Value]
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[Port, ...] = ()
    mode: str = ""

    @property
    def shares(self) -> str:
        """The service or container whose network it shares: "service:X", "container:X", or ""."""
        return self.mode if self.mode.startswith(("service:", "container:")) else ""


@dataclass(frozen=True, slots=True)
class Stack:
    """A compose project."""

    project: str
    services: Mapping[str, Service]
    nets: Mapping[str, Net]

    def on(self, name: str) -> tuple[Net, ...]:
        """Return a service's networks, its own or those of the service whose network it shares."""
        for _ in range(MAX_SHARING):
            service = self.services.get(name)
            if service is None or not service.mode.startswith("service:"):
                return tuple(attachment.net for attachment in service.attachments) if service else ()
            name = service.mode.partition(":")[2]
        return ()


def stack(project: str, services: Mapping[str, Value], networks: Mapping[str, Value], notes: Notes) -> Stack:
    """Read everything about networks; add each mistake to `notes`."""
    nets = {key: _net(project, key, value) for key, value in networks.items()}
    found = {name: _service(project, name, value, nets, notes) for name, value in services.items()}
    for name, service in found.items():
        other = service.mode.partition(":")[2] if service.mode.startswith("service:") else None
        if other is not None and (other not in found or other == name):
            place = services[name].map["network_mode"].place
            notes.mistake(
                place, f'network_mode: "{other}" is not another service in these files{near(other, found)}', name
            )
    return Stack(project, found, nets)


def _net(project: str, key: str, value: Value) -> Net:
    keys = value.map
    external = keys.get("external", Value(None, value.place))
    if external.truth or external.map:
        # "external: {name: …}" is compose's old form.
        name = (keys.get("name") or external.map.get("name") or Value(key, value.place)).text or key
        if name in ("host", "none"):
            return Net(key, name, "apart", _APART[name], place=value.place)
        return Net(key, name, why="external: assumed to be a Docker bridge network", direct=True, place=value.place)
    name = (keys["name"].text if "name" in keys else "") or f"{project}_{key}"
    driver = (keys["driver"].text if "driver" in keys else "") or "bridge"
    options = keys["driver_opts"].map if "driver_opts" in keys else {}
    kind = "own" if driver.rpartition("/")[2].startswith("fw") else "guarded" if driver == "bridge" else "apart"
    why = "" if kind != "apart" else _APART.get(driver, f"not protected: driver {driver} is not Docker's bridge")
    modes = {value.text for key, value in options.items() if key.startswith(f"{_BRIDGE}gateway_mode_ipv")}
    icc = options.get(f"{_BRIDGE}enable_icc")
    return Net(
        key,
        name,
        kind,
        why,
        internal="internal" in keys and keys["internal"].truth,
        flat=icc is None or icc.text not in ("0", "f", "F", "false", "FALSE", "False"),
        direct=kind == "own" or bool(modes & {"routed", "nat-unprotected"}),
        place=value.place,
        options=options,
    )


def _service(project: str, name: str, value: Value, nets: dict[str, Net], notes: Notes) -> Service:
    keys = value.map
    mode = keys["network_mode"].text if "network_mode" in keys else ""
    if mode and "networks" in keys and keys["networks"].map:
        notes.mistake(keys["networks"].place, "networks and network_mode cannot be combined", name)
    given = keys["container_name"].text if "container_name" in keys else ""
    return Service(
        name,
        value.place,
        given or f"{project}-{name}-1",
        bool(given),
        labels=keys["labels"].map if "labels" in keys else {},
        attachments=tuple(_attachments(project, name, mode, keys.get("networks"), value.place, nets, notes)),
        ports=tuple(ports(keys["ports"].items, name, notes)) if "ports" in keys else (),
        mode=mode,
    )


def _attachments(
    project: str, service: str, mode: str, networks: Value | None, place: Place, nets: dict[str, Net], notes: Notes
) -> Iterator[Attachment]:
    if mode.startswith(("service:", "container:")):
        return
    if mode in _APART:
        yield Attachment(Net(mode, mode, "apart", _APART[mode]), {})
        return
    if mode:
        key = "bridge" if mode == "default" else mode
        yield Attachment(Net(key, key, why="" if key == "bridge" else "assumed to be a Docker bridge network"), {})
        return
    wanted = networks.map if networks and networks.map else {"default": Value({}, place)}
    found = []
    for key, value in wanted.items():
        if key not in nets:
            if key != "default":
                notes.mistake(value.place, f'network "{key}" is not defined in these files{near(key, nets)}', service)
            nets[key] = Net(key, f"{project}_{key}", place=value.place, options={})
        found.append(Attachment(nets[key], value.map["driver_opts"].map if "driver_opts" in value.map else {}))
    yield from found
    bridged = any(each.net.kind != "apart" and not each.net.internal for each in found)
    if not bridged and any(each.net.why == _APART["overlay"] and not each.net.internal for each in found):
        # Docker connects it there too, for published ports and outbound traffic.
        yield Attachment(Net("docker_gwbridge", "docker_gwbridge", flat=False), {})


def near(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean …?" if one of the names is similar."""
    found = difflib.get_close_matches(name[:64], [each for each in islice(names, MAX_NAMES) if each != name], n=1)
    return f"; did you mean {found[0]}?" if found else ""
