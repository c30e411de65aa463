"""Environment → Settings, with every mistake at once. Pure: reads the mapping it is given, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from plugin.labels import parser
from plugin.labels.grammar import parse_deny
from plugin.model import Defaults, FwError, PolicySpec, Rule
from plugin.protocols import WITH_PORTS

#: Every setting: default, meaning. `config.json` and the README are checked against it.
SETTINGS: dict[str, tuple[str, str]] = {
    "FW_SOCKET": ("/run/docker/plugins/fw.sock", "the socket on which Docker finds the driver"),
    "FW_DOCKER_SOCKET": ("/host/run/docker.sock", "Docker's API socket, as seen inside the plugin"),
    "FW_STATE": ("/var/lib/docker-fw/state.json", "the file that keeps networks and endpoints over restarts"),
    "FW_SYSCTL": ("/host/proc/sys/net", "the host's /proc/sys/net, writable, as seen inside the plugin"),
    "FW_CGROUP": ("/host/cgroup", "the host's /sys/fs/cgroup, as seen inside the plugin"),
    "FW_DOCKERD_CGROUP": (
        "system.slice/docker.service, system.slice/snap.docker.dockerd.service, openrc.docker",
        "dockerd's control group, and nobody else's: paths below FW_CGROUP, those that there are",
    ),
    "FW_BOOT": ("/host/etc/docker-fw", "the host's /etc/docker-fw (fwctl boot), as seen inside the sidecar"),
    "FW_DOCKERD_PORTS": (
        "2375-2377, 7946, 7946/udp, 4789/udp, 9323",
        "ports of dockerd's own: its API, swarm, metrics",
    ),
    "FW_ALLOW": ("", "what every container answers on besides TCP 22, 80 and 443, as in fw.allow"),
    "FW_DENY": ("", "ports taken out of every container's base, as in fw.deny"),
    "FW_POLICY": ("", "every container's base where nothing else is said, as in fw.policy"),
    "FW_EGRESS": ("", "what every container may begin where nothing else is said, as in fw.egress"),
    "FW_RATE": ("", "new flows to every container's ports where nothing else is said, as in fw.rate"),
    "FW_LOG": ("none", "drop: what is dropped goes to docker-fw's log, as in fw.log"),
    "FW_MISTAKES": (
        "refuse",
        "on docker-fw's own networks, refuse: a wrong label stops the start; close: it starts, closed",
    ),
    "FW_IMAGE_LABELS": ("ignore", "ignore: labels that an image brought open nothing; trust: they count like any"),
    "FW_PUBLISHED": ("policy", "policy: a published port needs fw.allow like any other; allow: -p itself opens it"),
    "FW_MARK": ("0x08000000", "the packet mark (one bit) that lets accepted packets pass Docker's own firewall"),
    "FW_LOG_LEVEL": ("info", "debug, info, warning or error"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    socket: str
    docker_socket: str
    state: str
    sysctl: str
    cgroup: str
    #: Paths below it, of one to four names: the levels that the rules look at.
    dockerd_cgroup: tuple[str, ...]
    boot: str
    dockerd_ports: tuple[Rule, ...]
    defaults: Defaults
    refuse: bool
    trust_images: bool
    mark: int
    log_level: str


def read(environ: Mapping[str, str]) -> Settings:
    """Raises FwError that names every setting at fault. An unknown FW_ name is a fault too: it may be a typo."""
    values = {name: environ.get(name, "").strip() or default for name, (default, _) in SETTINGS.items()}
    faults = [
        f"{name} is not a setting (known: {', '.join(SETTINGS)})"
        for name in sorted(environ)
        if name.startswith("FW_") and name not in SETTINGS
    ]
    dockerd_ports, mistakes = parse_deny(values["FW_DOCKERD_PORTS"])
    mistakes += [f"{rule} has no ports" for rule in dockerd_ports if rule.proto not in WITH_PORTS]
    faults += [f'FW_DOCKERD_PORTS="{values["FW_DOCKERD_PORTS"]}": {mistake}' for mistake in mistakes]
    groups = tuple(group.strip() for group in values["FW_DOCKERD_CGROUP"].split(","))
    faults += [
        f'FW_DOCKERD_CGROUP="{group}": must be a path of one to four names, like system.slice/docker.service'
        for group in groups
        if not re.fullmatch(r"[^/\s]+(/[^/\s]+){0,3}", group) or {".", ".."} & set(group.split("/"))
    ]
    spec = PolicySpec()
    for key in parser.KEYS:
        name = "FW_" + key.removeprefix(parser.PREFIX).upper()
        if values[name]:
            parsed = parser.parse({key: values[name]}, "setting ")
            spec = parser.over(spec, parsed.spec)
            faults += [f'{name}="{values[name]}": {problem.text}' for problem in parsed.problems]
    mark = 0
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}", values["FW_MARK"]):
        mark = int(values["FW_MARK"], 0 if values["FW_MARK"][:2].lower() == "0x" else 10)
    if mark.bit_count() != 1 or mark >= 1 << 32:
        faults.append(f'FW_MARK="{values["FW_MARK"]}": must be one bit of 32, like 0x08000000')
    for name, *words in (
        ("FW_PUBLISHED", "policy", "allow"),
        ("FW_MISTAKES", "refuse", "close"),
        ("FW_IMAGE_LABELS", "ignore", "trust"),
    ):
        if values[name].lower() not in words:
            faults.append(f'{name}="{values[name]}": must be {" or ".join(words)}')
    if values["FW_LOG_LEVEL"].lower() not in ("debug", "info", "warning", "error"):
        faults.append(f'FW_LOG_LEVEL="{values["FW_LOG_LEVEL"]}": must be debug, info, warning or error')
    for name in ("FW_SOCKET", "FW_DOCKER_SOCKET", "FW_STATE", "FW_SYSCTL", "FW_CGROUP", "FW_BOOT"):
        if not values[name].startswith("/"):
            faults.append(f'{name}="{values[name]}": must be an absolute path')
    if faults:
        raise FwError("; ".join(faults))
    return Settings(
        socket=values["FW_SOCKET"],
        docker_socket=values["FW_DOCKER_SOCKET"],
        state=values["FW_STATE"],
        sysctl=values["FW_SYSCTL"],
        cgroup=values["FW_CGROUP"],
        dockerd_cgroup=groups,
        boot=values["FW_BOOT"],
        dockerd_ports=tuple(sorted(set(dockerd_ports))),
        defaults=Defaults(spec, values["FW_PUBLISHED"].lower() == "allow"),
        refuse=values["FW_MISTAKES"].lower() == "refuse",
        trust_images=values["FW_IMAGE_LABELS"].lower() == "trust",
        mark=mark,
        log_level=values["FW_LOG_LEVEL"].lower(),
    )
