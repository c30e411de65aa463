"""What `fwctl` asks: how things are, why a flow passes or not, what would change, the table as a file. Changes nothing.

Each answer is made from a copy of what is known, so that no container waits for it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any

from plugin import __version__
from plugin.docker.bridges import Bridges
from plugin.docker.client import DockerApi
from plugin.docker.engine import unfit
from plugin.docker.follower import DockerFollower
from plugin.docker.proxy_ports import own_ports
from plugin.fwctl.api import export, plan, status
from plugin.fwctl.api.explain import Around, explain
from plugin.jsonio import INTERFACE_NAME
from plugin.kernel import link_monitor
from plugin.kernel.resolver import asked_from_host
from plugin.model import Address, DockerUnavailable, FwError, Published
from plugin.nftables import drift, dump
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.sets import Element
from plugin.nftables.table import Nft
from plugin.policy.facts import Facts
from plugin.policy.view import evaluated
from plugin.settings import Settings
from plugin.state.reconciler import Reconciler

#: Settings that the table comes from, besides those that are said of every container.
_OF_THE_TABLE = ("FW_DOCKERD_PORTS", "FW_IMAGE_LABELS", "FW_MARK", "FW_PUBLISHED")
_OF_CONTAINERS = ("FW_ALLOW", "FW_DENY", "FW_POLICY", "FW_EGRESS", "FW_RATE", "FW_LOG")
#: How often the kernel is read without holding anything up, before it is read under the lock.
_TRIES = 3
#: What is known, elements, the lease; the rules as text, and as the kernel told them when they had been put there.
Should = tuple[tuple[Facts, list[Element], dict[Element, int]], tuple[str, tuple[bytes, ...]]]
log = logging.getLogger(__name__)


class AdminQueries:
    """Thread-safe. `read` makes Settings of ours with some exchanged; `blind` tells if docker-proxy is not known."""

    def __init__(
        self,
        reconciler: Reconciler,
        nft: Nft,
        bridges: Bridges,
        follower: DockerFollower,
        api: DockerApi,
        settings: Settings,
        read: Callable[[Mapping[str, str]], Settings],
        proxy_unidentified: Callable[[], bool],
        held: Callable[[], list[Published]] = list,
        boot: Callable[[], str] = str,
    ) -> None:
        self._state = reconciler
        self._nft = nft
        self._bridges = bridges
        self._follower = follower
        self._api = api
        self._settings = settings
        self._read = read
        self._blind = proxy_unidentified
        self._held = held
        self._boot = boot

    def status(self) -> dict[str, Any]:
        """What there is and what it answers on, for people and programs."""
        inventory, now = self._state.snapshot(), time.time()
        dropped = self._dropped()
        return {
            "version": __version__,
            "now": now,
            "networks": status.driver_networks(inventory, dropped),
            "guarded": status.guarded_networks(inventory, self._api.engine, self._settings.mark, dropped),
            "apart": dict(self._follower.not_guarded),
            "foreign": sorted(self._bridges.unmanaged()),
            "overrides": status.elsewhere(inventory),
            "banned": sum(not 0 < until <= now for until in inventory.state.bans.values()),
            "watched": inventory.watched,
            "listening": self._follower.listening,
            "proxy_known": not self._blind(),
            "held": [f"{port.host_port}/{port.proto} on {port.host_ip}" for port in self._held()],
            "owned": self._nft.owned,
            "binds": self._nft.binds,
            "unfit": unfit(self._api.engine),
            "unsaved": self._state.unsaved_reason,
            "boot": self._boot(),
            "host_resolver": asked_from_host(self._api.engine.major),
        }

    def places(self, container_id: str) -> list[dict[str, Any]]:
        """What a container accepts and may begin, network by network."""
        return status.places(self._state.snapshot(), container_id, self._api.engine, self._settings.mark)

    def explain(self, source: str, target: str, what: str, family: int | None = None) -> dict[str, Any]:
        """What becomes of a flow, step by step, in both families or in one. Raises FwError."""
        around = Around(_own(), dict(self._follower.not_guarded), self._api.engine, self._settings.mark, time.time())
        return explain(self._state.snapshot(), source, target, what, around, family)

    def plan(self, given: Mapping[str, str]) -> dict[str, Any]:
        """How the kernel differs from what should be, and what these settings would change. Raises FwError."""
        inventory = self._state.snapshot()
        who = drift.names(inventory)
        found: dict[str, Any] = {"drift": self._drift(who), "policy": [], "elements": [], "rules": [], "notes": []}
        if given:
            settings = self._read(given)
            found["notes"] = _notes(given)
            before = evaluated(self._settings.defaults, inventory.facts)
            after = evaluated(settings.defaults, self._changed(settings, inventory.facts))
            found["policy"] = plan.policies(before, after)
            found["elements"] = drift.elements(plan.difference(before, after), who)
            if settings.mark != self._settings.mark:
                found["rules"] = plan.rules_apart(self._settings.mark, settings.mark)
        found["changes"] = any(found[part] for part in ("drift", "policy", "elements", "rules"))
        return found

    def export(self) -> dict[str, Any]:
        """The table as a file for `nft -f`."""
        inventory = evaluated(self._settings.defaults, dataclasses.replace(self._state.facts, suspended=True))
        elements = {element for owner in inventory.owners() for element in inventory.elements(owner)}
        banned, timed = ban_elements(inventory.state.bans, time.time())
        unmanaged = frozenset(filter(INTERFACE_NAME.fullmatch, self._bridges.unmanaged()))
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        text = export.file(
            self._settings.mark,
            elements | banned,
            timed,
            unmanaged,
            logs=self._nft.logs,
            binds=self._nft.binds,
            version=__version__,
            when=when,
        )
        return {"text": text}

    def _changed(self, settings: Settings, facts: Facts) -> Facts:
        """What would be known under these settings."""
        if settings.dockerd_ports != self._settings.dockerd_ports:
            asked = [each for ports in facts.saved.asked.values() for each in ports]
            facts = dataclasses.replace(facts, dockerd=own_ports(settings.dockerd_ports, asked))
        if settings.trust_images != self._settings.trust_images:
            try:
                look = DockerApi(settings.docker_socket, trust_images=settings.trust_images).look()
            except DockerUnavailable as silent:
                raise FwError(f"{silent}; whose labels are an image's only Docker can tell") from silent
            facts = plan.with_containers(look.containers)(facts)
        return facts

    def _drift(self, who: drift.Names) -> list[drift.Told]:
        try:
            for _ in range(_TRIES):
                found = dump.read()
                same, should = self._state.read(partial(self._compared, found))
                if same:
                    break
            else:
                found, should = self._state.read(lambda _: (dump.read(), self._should()))
        except OSError as error:
            raise FwError(f"could not read the table from the kernel: {error.strerror or error}") from error
        (facts, elements, lease), (text, put) = should
        lasting, timed = ban_elements(facts.saved.bans, time.time())
        # What ends in a moment may have ended.
        timed_yet = [element for element, seconds in (timed | lease).items() if seconds > 2]
        wanted = lasting.union(elements)
        return drift.drift(wanted, timed_yet, found, text, dump.lines(put), who)

    def _compared(self, found: drift.TableDump, _: object) -> tuple[bool, Should]:
        """Whether the kernel's table is still what was found, and what should be."""
        return self._nft.generation() == found.generation, self._should()

    def _should(self) -> Should:
        """Elements and rules as they should be, to be compared when nobody waits for the lock."""
        return self._state.should(), self._nft.put()

    def _dropped(self) -> Mapping[Address, tuple[int, int]]:
        try:
            return self._nft.dropped()
        except OSError as error:
            log.error("could not read how much was dropped: %s", error)
            return {}


def _own() -> frozenset[Address]:
    try:
        return frozenset(ip_address(packed) for packed in link_monitor.addresses() if len(packed) in (4, 16))
    except OSError as error:
        raise FwError(f"could not read the host's addresses: {error.strerror}") from error


def _notes(given: Mapping[str, str]) -> list[str]:
    notes = []
    for name in given:
        if name == "FW_MISTAKES":
            notes.append("FW_MISTAKES counts for containers that start then, and changes nothing now")
        elif name == "FW_MARK":
            notes.append("FW_MARK is in the rule in DOCKER-USER too, or in dockerd's --bridge-accept-fwmark")
        elif name not in (*_OF_THE_TABLE, *_OF_CONTAINERS):
            notes.append(f"{name} changes nothing of the table")
    return notes
