"""A merged compose project → services and networks as docker-fw would meet them, and what is wrong with that. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from plugin.fwctl.check.compose.model import Notes, Place, Value
from plugin.fwctl.check.compose.ports import Port, ports

NOWHERE = Place("")
#: Services that share the network of one that shares one: more is a circle.
MAX_SHARING = 16
#: So many names are looked through for one that is much like a wrong one.
MAX_NAMES = 200
_BRIDGE = "com.docker.network.bridge."
#: Drivers that docker-fw has nothing to say about, and why.
_APART = {
    "host": "the host's own network: not guarded",
    "none": "no network",
    "macvlan": "not guarded: macvlan goes past the host's firewall",
    "ipvlan": "not guarded: ipvlan goes past the host's firewall",
    "overlay": "not guarded: containers of an overlay talk freely, across nodes too",
}


@dataclass(frozen=True, slots=True)
class Net:
    """A network: its name in the file and Docker's full name.

    `kind`: "own" (docker-fw's driver), "guarded" (Docker's bridge) or "apart", and then `why`. `flat`: containers talk
    freely. `direct`: containers are to be reached on their own addresses, or nobody knows that they are not.
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
        """What `fw.network.NAME` may call it."""
        return frozenset((self.key, self.name))


@dataclass(frozen=True, slots=True)
class Attachment:
    """A service's place on a network, with its own driver_opts."""

    net: Net
    options: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Service:
    """`mode`: its network_mode. `container`: what Docker calls its (first) container; `named`: as the file says."""

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
        """Whose network it shares: "service:X", "container:X", or ""."""
        return self.mode if self.mode.startswith(("service:", "container:")) else ""


@dataclass(frozen=True, slots=True)
class Stack:
    """The services and networks of a compose project."""

    project: str
    services: Mapping[str, Service]
    nets: Mapping[str, Net]

    def on(self, name: str) -> tuple[Net, ...]:
        """The networks on which a service's packets go, its own or those of the service whose network it shares."""
        for _ in range(MAX_SHARING):
            service = self.services.get(name)
            if service is None or not service.mode.startswith("service:"):
                return tuple(attachment.net for attachment in service.attachments) if service else ()
            name = service.mode.partition(":")[2]
        return ()


def stack(project: str, services: Mapping[str, Value], networks: Mapping[str, Value], notes: Notes) -> Stack:
    """Everything that the files say about networks; each mistake goes to `notes`."""
    nets = {key: _net(project, key, value) for key, value in networks.items()}
    found = {name: _service(project, name, value, nets, notes) for name, value in services.items()}
    for name, service in found.items():
        other = service.mode.partition(":")[2] if service.mode.startswith("service:") else None
        if other is not None and (other not in found or other == name):
            place = services[name].map["network_mode"].place
            notes.mistake(place, f'network_mode: "{other}" is no other service here{near(other, found)}', name)
    return Stack(project, found, nets)


def _net(project: str, key: str, value: Value) -> Net:
    told = value.map
    external = told.get("external", Value(None, value.place))
    if external.truth or external.map:
        # "external: {name: …}" is compose's old way to say the name.
        name = (told.get("name") or external.map.get("name") or Value(key, value.place)).text or key
        if name in ("host", "none"):
            return Net(key, name, "apart", _APART[name], place=value.place)
        return Net(key, name, why="external: taken for a bridge network of Docker's", direct=True, place=value.place)
    name = (told["name"].text if "name" in told else "") or f"{project}_{key}"
    driver = (told["driver"].text if "driver" in told else "") or "bridge"
    options = told["driver_opts"].map if "driver_opts" in told else {}
    kind = "own" if driver.rpartition("/")[2].startswith("fw") else "guarded" if driver == "bridge" else "apart"
    why = "" if kind != "apart" else _APART.get(driver, f"not guarded: driver {driver} is not Docker's bridge")
    modes = {value.text for key, value in options.items() if key.startswith(f"{_BRIDGE}gateway_mode_ipv")}
    icc = options.get(f"{_BRIDGE}enable_icc")
    return Net(
        key,
        name,
        kind,
        why,
        internal="internal" in told and told["internal"].truth,
        flat=icc is None or icc.text not in ("0", "f", "F", "false", "FALSE", "False"),
        direct=kind == "own" or bool(modes & {"routed", "nat-unprotected"}),
        place=value.place,
        options=options,
    )


def _service(project: str, name: str, value: Value, nets: dict[str, Net], notes: Notes) -> Service:
    told = value.map
    mode = told["network_mode"].text if "network_mode" in told else ""
    if mode and "networks" in told and told["networks"].map:
        notes.mistake(told["networks"].place, "networks and network_mode exclude each other", name)
    given = told["container_name"].text if "container_name" in told else ""
    return Service(
        name,
        value.place,
        given or f"{project}-{name}-1",
        bool(given),
        labels=told["labels"].map if "labels" in told else {},
        attachments=tuple(_attachments(project, name, mode, told.get("networks"), value.place, nets, notes)),
        ports=tuple(ports(told["ports"].items, name, notes)) if "ports" in told else (),
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
        yield Attachment(Net(key, key, why="" if key == "bridge" else "taken for a bridge network of Docker's"), {})
        return
    wanted = networks.map if networks and networks.map else {"default": Value({}, place)}
    found = []
    for key, value in wanted.items():
        if key not in nets:
            if key != "default":
                notes.mistake(value.place, f'network "{key}" is not among the networks here{near(key, nets)}', service)
            nets[key] = Net(key, f"{project}_{key}", place=value.place, options={})
        found.append(Attachment(nets[key], value.map["driver_opts"].map if "driver_opts" in value.map else {}))
    yield from found
    bridged = any(each.net.kind != "apart" and not each.net.internal for each in found)
    if not bridged and any(each.net.why == _APART["overlay"] and not each.net.internal for each in found):
        # Docker gives it a leg there, for what is published and for the way out.
        yield Attachment(Net("docker_gwbridge", "docker_gwbridge", flat=False), {})


def near(name: str, names: Iterable[str]) -> str:
    """ "; did you mean …?" if one of the names is much like it."""
    found = difflib.get_close_matches(name[:64], [each for each in islice(names, MAX_NAMES) if each != name], n=1)
    return f"; did you mean {found[0]}?" if found else ""
