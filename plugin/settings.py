"""The registry of settings; environment → Settings, with every mistake at once. Pure: reads the mapping it is given.

One entry adds a setting; `config.json` and the README are checked against the entries, in both directions. An entry
whose field `Settings` lacks, or whose label key names another setting, is an error when this module is imported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from plugin.labels import parser
from plugin.labels.grammar import parse_deny
from plugin.labels.keys import KEYS
from plugin.model import Defaults, FwError, PolicySpec, Rule
from plugin.paths import BOOT_FILE, SOCKET, STATE
from plugin.protocols import WITH_PORTS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting: its name in the environment, its default (also for an empty value), and its meaning.

    `read`: the text → (its value, mistakes). `field`: the field of `Settings` that gets the value; or `label`: the key
    whose value it sets for every container. `table`: it changes the table's content, so `fwctl plan` computes with it.
    `plugin`: `docker plugin set` offers it; the others are paths inside the plugin, which config.json's mounts fix.
    """

    name: str
    default: str
    meaning: str
    read: Callable[[str], tuple[Any, list[str]]]
    table: bool
    field: str = ""
    label: str = ""
    plugin: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked: paths, limits and the policy of every container."""

    socket: str
    docker_socket: str
    state: str
    sysctl: str
    cgroup: str
    #: Paths below `cgroup`, of one to four names: the levels that the rules match.
    dockerd_cgroup: tuple[str, ...]
    boot: str
    dockerd_ports: tuple[Rule, ...]
    defaults: Defaults
    refuse: bool
    trust_images: bool
    mark: int
    log_level: str


def _path(name: str, field: str, default: str, meaning: str, *, plugin: bool) -> Setting:
    return Setting(name=name, default=default, meaning=meaning, read=_absolute, table=False, field=field, plugin=plugin)


def _absolute(text: str) -> tuple[str, list[str]]:
    return text, [] if text.startswith("/") else ["must be an absolute path"]


def _state(text: str) -> tuple[str, list[str]]:
    path, mistakes = _absolute(text)
    if text.rpartition("/")[2] == BOOT_FILE:
        mistakes.append(f"must not be named {BOOT_FILE}: docker-fw writes another file of this name beside it")
    return path, mistakes


def _label(name: str, default: str, meaning: str, *, key: str) -> Setting:
    def read(text: str) -> tuple[PolicySpec, list[str]]:
        parsed = parser.parse({key: text} if text else {}, "setting ")
        return parsed.spec, [problem.text for problem in parsed.problems]

    return Setting(name=name, default=default, meaning=meaning, read=read, table=True, label=key)


def _one_of(*words: str) -> Callable[[str], tuple[str, list[str]]]:
    right = f"must be {', '.join(words[:-1])} or {words[-1]}"
    return lambda text: (text.lower(), [] if text.lower() in words else [right])


def _is(word: str, *, of: tuple[str, str]) -> Callable[[str], tuple[bool, list[str]]]:
    """Return a reader that yields True for `word`."""
    read = _one_of(*of)
    return lambda text: (text.lower() == word, read(text)[1])


def _groups(text: str) -> tuple[tuple[str, ...], list[str]]:
    groups = tuple(group.strip() for group in text.split(","))
    right = "must be a path of one to four names, like system.slice/docker.service"
    wrong = [g for g in groups if not re.fullmatch(r"[^/\s]+(/[^/\s]+){0,3}", g) or {".", ".."} & set(g.split("/"))]
    return groups, [f'"{group}" {right}' for group in wrong]


def _ports(text: str) -> tuple[tuple[Rule, ...], list[str]]:
    rules, mistakes = parse_deny(text)
    mistakes += [f"{rule} has no ports" for rule in rules if rule.proto not in WITH_PORTS]
    return tuple(sorted(set(rules))), mistakes


def _bit(text: str) -> tuple[int, list[str]]:
    mark = 0
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}", text):
        mark = int(text, 0 if text[:2].lower() == "0x" else 10)
    right = mark.bit_count() == 1 and mark < 1 << 32
    return mark, [] if right else ["must be one bit of 32, like 0x08000000"]


#: In the order in which mistakes are reported.
_ENTRIES = (
    _label(
        "FW_ALLOW", "", "what every container accepts in addition to TCP 22, 80 and 443, as in fw.allow", key="fw.allow"
    ),
    _label("FW_DENY", "", "ports removed from every container's base, as in fw.deny", key="fw.deny"),
    _label("FW_POLICY", "", "every container's base unless configured elsewhere, as in fw.policy", key="fw.policy"),
    _label(
        "FW_EGRESS", "", "what every container may open unless configured elsewhere, as in fw.egress", key="fw.egress"
    ),
    _label(
        "FW_RATE",
        "",
        "limit of new flows to every container's ports unless configured elsewhere, as in fw.rate",
        key="fw.rate",
    ),
    _label("FW_LOG", "none", "drop: dropped packets are logged in docker-fw's log, as in fw.log", key="fw.log"),
    Setting(
        name="FW_MISTAKES",
        default="refuse",
        meaning="on docker-fw networks, refuse: a wrong label stops the start; close: it starts, closed",
        read=_is("refuse", of=("refuse", "close")),
        table=False,
        field="refuse",
    ),
    Setting(
        name="FW_IMAGE_LABELS",
        default="ignore",
        meaning="ignore: labels from an image open nothing; trust: they apply like any other",
        read=_is("trust", of=("ignore", "trust")),
        table=True,
        field="trust_images",
    ),
    Setting(
        name="FW_PUBLISHED",
        default="policy",
        meaning="policy: a published port needs fw.allow like any other port; allow: -p itself opens it",
        read=_is("allow", of=("policy", "allow")),
        table=True,
        field="published",
    ),
    Setting(
        name="FW_DOCKERD_PORTS",
        default="2375-2377, 7946, 7946/udp, 4789/udp, 9323",
        meaning="ports of dockerd itself: API, swarm, metrics",
        read=_ports,
        table=True,
        field="dockerd_ports",
    ),
    Setting(
        name="FW_DOCKERD_CGROUP",
        default="system.slice/docker.service, system.slice/snap.docker.dockerd.service, openrc.docker",
        meaning="control groups of dockerd alone, as paths below FW_CGROUP; missing ones are ignored",
        read=_groups,
        table=False,
        field="dockerd_cgroup",
    ),
    Setting(
        name="FW_MARK",
        default="0x08000000",
        meaning="the packet mark (one bit) with which accepted packets pass Docker's own firewall",
        read=_bit,
        table=True,
        field="mark",
    ),
    Setting(
        name="FW_LOG_LEVEL",
        default="info",
        meaning="debug, info, warning or error",
        read=_one_of("debug", "info", "warning", "error"),
        table=False,
        field="log_level",
    ),
    _path(
        "FW_SOCKET",
        "socket",
        SOCKET,
        "the socket on which Docker finds the driver",
        plugin=False,
    ),
    _path(
        "FW_DOCKER_SOCKET",
        "docker_socket",
        "/host/run/docker.sock",
        "Docker's API socket, as seen inside the plugin",
        plugin=True,
    ),
    Setting(
        name="FW_STATE",
        default=STATE,
        meaning="the file that keeps networks and endpoints across restarts",
        read=_state,
        table=False,
        field="state",
        plugin=False,
    ),
    _path(
        "FW_SYSCTL",
        "sysctl",
        "/host/proc/sys/net",
        "the host's /proc/sys/net, writable, as seen inside the plugin",
        plugin=False,
    ),
    _path("FW_CGROUP", "cgroup", "/host/cgroup", "the host's /sys/fs/cgroup, as seen inside the plugin", plugin=True),
    _path(
        "FW_BOOT",
        "boot",
        "/host/etc/docker-fw",
        "the host's /etc/docker-fw (fwctl boot), as seen inside the sidecar",
        plugin=False,
    ),
)
SETTINGS = {setting.name: setting for setting in _ENTRIES}
#: The field of `Defaults` that a setting gives, in addition to labels.
_PUBLISHED = "published"


def _incomplete() -> str:
    """Return where entries, `Settings` and label keys do not agree; "" if they do."""
    fields = {each.name for each in dataclasses.fields(Settings)} - {"defaults"} | {_PUBLISHED}
    for each in _ENTRIES:
        if bool(each.field) == bool(each.label):
            return f"{each.name} gives either a field or a label"
        if each.field and each.field not in fields:
            return f"{each.name} gives Settings.{each.field}, which does not exist"
    if missing := fields - {each.field for each in _ENTRIES}:
        return f"no setting gives Settings.{min(missing)}"
    given = {each.label: each.name for each in _ENTRIES if each.label}
    for key in KEYS.values():
        if given.get(key.name) != key.setting:
            return f"{key.name} names the setting {key.setting}, which is not one for it"
    return "" if len(SETTINGS) == len(_ENTRIES) else "two settings have the same name"


if _why := _incomplete():
    raise TypeError(_why)


def read(environ: Mapping[str, str]) -> Settings:
    """Read all settings. Raises FwError that names every wrong one; an unknown FW_ name is wrong too, maybe a typo."""
    faults = [
        f"{name} is not a setting (known: {', '.join(SETTINGS)})"
        for name in sorted(environ)
        if name.startswith("FW_") and name not in SETTINGS
    ]
    fields: dict[str, Any] = {}
    spec = PolicySpec()
    for setting in _ENTRIES:
        text = environ.get(setting.name, "").strip() or setting.default
        value, mistakes = setting.read(text)
        faults += [f'{setting.name}="{text}": {mistake}' for mistake in mistakes]
        if setting.label:
            spec = parser.over(spec, value)
        else:
            fields[setting.field] = value
    if faults:
        raise FwError("; ".join(faults))
    return Settings(defaults=Defaults(spec, fields.pop(_PUBLISHED)), **fields)
