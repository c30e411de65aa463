"""Answers to `fwctl`: the status, why a connection is accepted or dropped, what would change, the table as a file.

Nothing is changed. Each answer is made from a copy of the state, so that no hook waits for it.
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
from plugin.nftables.compile import compiled
from plugin.nftables.sets import Element
from plugin.nftables.table import ExpectedRules, KernelTable
from plugin.policy.facts import Facts
from plugin.settings import SETTINGS, Settings
from plugin.state.reconciler import Reconciler

#: How often the kernel is read without the lock, before it is read under it.
_TRIES = 3
#: The facts, elements and lease; the rules as text, and as the kernel reported them after they were loaded.
Should = tuple[tuple[Facts, list[Element], dict[Element, int]], ExpectedRules]
log = logging.getLogger(__name__)


class AdminQueries:
    """Thread-safe. `read`: returns the settings with some replaced; `proxy_unidentified`: docker-proxy is unknown."""

    def __init__(
        self,
        reconciler: Reconciler,
        nft: KernelTable,
        bridges: Bridges,
        follower: DockerFollower,
        api: DockerApi,
        settings: Settings,
        read: Callable[[Mapping[str, str]], Settings],
        proxy_unidentified: Callable[[], bool],
        held: Callable[[], list[Published]] = list,
        boot: Callable[[], str] = str,
    ) -> None:
        self._reconciler = reconciler
        self._nft = nft
        self._bridges = bridges
        self._follower = follower
        self._api = api
        self._settings = settings
        self._read = read
        self._proxy_unidentified = proxy_unidentified
        self._held_ports = held
        self._boot = boot

    def status(self) -> dict[str, Any]:
        """Return networks, containers and what they accept, and the state of docker-fw itself."""
        inventory, now = self._reconciler.snapshot(), time.time()
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
            "proxy_known": not self._proxy_unidentified(),
            "held": [f"{port.host_port}/{port.proto} on {port.host_ip}" for port in self._held_ports()],
            "owned": self._nft.features.owned,
            "binds": self._nft.features.bridge,
            "unfit": unfit(self._api.engine),
            "unsaved": self._reconciler.unsaved_reason,
            "boot": self._boot(),
            "host_resolver": asked_from_host(self._api.engine.major),
        }

    def places(self, container_id: str) -> list[dict[str, Any]]:
        """Return what a container accepts and may open, network by network."""
        return status.places(self._reconciler.snapshot(), container_id, self._api.engine, self._settings.mark)

    def explain(self, source: str, target: str, what: str, family: int | None = None) -> dict[str, Any]:
        """Explain what happens to a connection, step by step, in both families or in one. Raises FwError."""
        around = Around(
            _host_addresses(), dict(self._follower.not_guarded), self._api.engine, self._settings.mark, time.time()
        )
        return explain(self._reconciler.snapshot(), source, target, what, around, family)

    def plan(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return how the kernel differs from the policy, and what these settings would change. Raises FwError."""
        inventory = self._reconciler.snapshot()
        owners = drift.names(inventory)
        found: dict[str, Any] = {"drift": self._drift(owners), "policy": [], "elements": [], "rules": [], "notes": []}
        if given:
            settings = self._read(given)
            found["notes"] = _notes(given)
            before = compiled(self._settings.defaults, inventory.facts)
            after = compiled(settings.defaults, self._changed(settings, inventory.facts))
            found["policy"] = plan.policies(before.view, after.view)
            found["elements"] = drift.elements(plan.difference(before, after), owners)
            if settings.mark != self._settings.mark:
                found["rules"] = plan.rule_differences(self._settings.mark, settings.mark)
        found["changes"] = any(found[part] for part in ("drift", "policy", "elements", "rules"))
        return found

    def export(self) -> dict[str, Any]:
        """Return the table as a file for `nft -f`."""
        facts = dataclasses.replace(self._reconciler.facts, suspended=True)
        elements = compiled(self._settings.defaults, facts).all_elements()
        banned, timed = ban_elements(facts.saved.bans, time.time())
        unmanaged = frozenset(filter(INTERFACE_NAME.fullmatch, self._bridges.unmanaged()))
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        text = export.file(
            self._settings.mark,
            elements | banned,
            timed,
            unmanaged,
            self._nft.features,
            version=__version__,
            when=when,
        )
        return {"text": text}

    def _changed(self, settings: Settings, facts: Facts) -> Facts:
        """Return the facts as they would be under these settings."""
        if settings.dockerd_ports != self._settings.dockerd_ports:
            asked = [each for ports in facts.saved.asked.values() for each in ports]
            facts = dataclasses.replace(facts, dockerd=own_ports(settings.dockerd_ports, asked))
        if settings.trust_images != self._settings.trust_images:
            try:
                look = DockerApi(settings.docker_socket, trust_images=settings.trust_images).look()
            except DockerUnavailable as error:
                raise FwError(f"{error}; only Docker knows which labels come from an image") from error
            facts = plan.with_containers(look.containers)(facts)
        return facts

    def _drift(self, owners: drift.Names) -> list[drift.DriftLine]:
        try:
            for _ in range(_TRIES):
                found = dump.read()
                same, should = self._reconciler.read(partial(self._compared, found))
                if same:
                    break
            else:
                found, should = self._reconciler.read(lambda _: (dump.read(), self._should()))
        except OSError as error:
            raise FwError(f"could not read the table from the kernel: {error.strerror or error}") from error
        (facts, elements, lease), (text, loaded) = should
        lasting, timed = ban_elements(facts.saved.bans, time.time())
        # An element that expires in a moment may have expired.
        timed_yet = [element for element, seconds in (timed | lease).items() if seconds > 2]
        wanted = lasting.union(elements)
        return drift.drift(wanted, timed_yet, found, text, dump.lines(loaded), owners)

    def _compared(self, found: drift.TableDump, _: object) -> tuple[bool, Should]:
        """Return whether the kernel's table is still as found, and what it should be."""
        return self._nft.generation() == found.generation, self._should()

    def _should(self) -> Should:
        """Return elements and rules as they should be, to be compared after the lock is released."""
        return self._reconciler.should(), self._nft.expected_rules()

    def _dropped(self) -> Mapping[Address, tuple[int, int]]:
        try:
            return self._nft.dropped()
        except OSError as error:
            log.error("could not read the counters of drops: %s", error)
            return {}


def _host_addresses() -> frozenset[Address]:
    try:
        return frozenset(ip_address(packed) for packed in link_monitor.addresses() if len(packed) in (4, 16))
    except OSError as error:
        raise FwError(f"could not read the host's addresses: {error.strerror}") from error


def _notes(given: Mapping[str, str]) -> list[str]:
    notes = []
    for name in given:
        if name == "FW_MISTAKES":
            notes.append("FW_MISTAKES applies to containers that start later, and changes nothing now")
        elif name == "FW_MARK":
            notes.append("FW_MARK is also in the rule in DOCKER-USER, or in dockerd's --bridge-accept-fwmark")
        elif name in SETTINGS and not SETTINGS[name].table:
            notes.append(f"{name} does not change the table")
    return notes
