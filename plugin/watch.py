"""The loops beside the hooks: what Docker tells, whether the kernel still holds what we put there, neighbours.

Level-triggered: an event only says "look". After each subscription, on each event, and every INTERVAL everything is
looked at. No loop ever opens anything that the containers' own labels do not.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from plugin.dockerapi import ApiSilent, Look
from plugin.links import Links, lives
from plugin.model import Container, Endpoint, Network
from plugin.nft import NftError
from plugin.reconcile import Reconciler
from plugin.record import INTERFACE_NAME

log = logging.getLogger(__name__)
#: Seconds between two looks at everything when nothing happens.
INTERVAL = 30.0
#: Seconds between two looks at the ruleset's generation (3 µs each).
TICK = 0.2
#: Seconds after which an endpoint that Docker does not list is forgotten.
GONE = 60.0
#: Names that Docker gives to its own bridges without being asked.
DOCKERS = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")
#: Events after which a container may have got an endpoint, or a bridge may have come.
_TELLING = ("container start", "container rename", "network connect", "network create")


class Api(Protocol):
    def look(self) -> Look: ...
    def events(self) -> Iterator[str]: ...


class Ensures(Protocol):
    def ensure(self) -> list[str]: ...


class Syncs(Protocol):
    def sync(self, networks: Mapping[str, Network], endpoints: Iterable[Endpoint]) -> None: ...


class Watcher:
    """Runs the loops in threads of its own from `start` to `stop`."""

    def __init__(
        self, api: Api, reconciler: Reconciler, links: Links, docker_user: Ensures, neighbours: Syncs,
        forget: Callable[[Endpoint], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._state = reconciler
        self._links = links
        self._docker_user = docker_user
        self._neighbours = neighbours
        self._forget = forget
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._look = threading.Event()
        self._check = threading.Event()
        self._touched = threading.Event()
        self._foreign: frozenset[str] | None = None
        self._told: frozenset[str] = frozenset()
        self._missing: dict[str, float] = {}
        self._noting = threading.Lock()

    def start(self) -> None:
        for loop in (self._listen, self._look_loop, self._keep, self._keep_dockers, self._answer_neighbours):
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._look.set()
        self._check.set()
        self._touched.set()
        self._changed.set()

    def changed(self) -> None:
        """An endpoint came or went."""
        self._changed.set()

    def wake(self) -> None:
        """Look at everything now: a hook saw something that needs it."""
        self._look.set()
        self._check.set()

    def _guarded(self, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                loop()
            except Exception:
                log.exception("the %s loop stumbled; going on", loop.__name__.strip("_"))
                self._stop.wait(1)

    def _listen(self) -> None:
        wait = 0.1
        while not self._stop.is_set():
            try:
                for event in self._api.events():
                    wait = 0.1
                    if event == "subscribed":
                        self.wake()
                    elif event in _TELLING and self._asks(event):
                        self._look.set()
            except ApiSilent as silent:
                log.debug("%s", silent)
            self._stop.wait(wait)
            wait = min(2 * wait, 2.0)

    def _asks(self, event: str) -> bool:
        """Whether an event is worth a look at everything: each costs Docker and us as much as a container's start.

        A network may bring a bridge; all else is of interest only to endpoints whose labels are not known.
        """
        return event in ("container rename", "network create") or any(
            e.joined and e.container is None for e in list(self._state.endpoints.values())
        )

    def _look_loop(self) -> None:
        while not self._stop.is_set():
            self._look.wait(INTERVAL)
            self._look.clear()
            if self._stop.is_set():
                return
            # The host's bridges before Docker's list: one that comes later may be a new one of Docker's (TRAPS 6).
            seen = others(self._links)
            try:
                look = self._api.look()
            except ApiSilent as silent:
                log.debug("%s", silent)
                continue
            self._foreign, self._told = frozenset(seen) - look.bridges, look.bridges
            self.learn(look.containers)
            self.bury(look.containers)
            self._note_foreign()

    def learn(self, containers: Mapping[str, Container]) -> None:
        """Gives endpoints whose labels were unknown at Join what Docker tells now, and follows renames."""
        for endpoint in list(self._state.endpoints.values()):
            container = containers.get(endpoint.id)
            if container is None or not endpoint.joined or endpoint.container == container:
                continue
            if endpoint.container is None:
                for problem in container.problems:
                    log.error("%s stays closed but for ICMP: %s", container.name, problem)
                log.info("%s (endpoint %s) is known now", container.name, endpoint.id[:12])
            self._state.edit_endpoint(endpoint.id, _knows(container))

    def bury(self, containers: Mapping[str, Container]) -> None:
        """Forgets joined endpoints that Docker has not had for GONE seconds: their Leave never came.

        Not at once, and not while a container has its link: one that is just starting has joined and is not listed yet.
        """
        now = time.monotonic()
        joined = {e.id: e for e in list(self._state.endpoints.values()) if e.joined and e.id not in containers}
        self._missing = {endpoint_id: self._missing.get(endpoint_id, now) for endpoint_id in joined}
        for endpoint_id, since in self._missing.items():
            if now - since >= GONE and not lives(endpoint_id):
                self._forget(joined[endpoint_id])

    def _keep(self) -> None:
        # Nothing else in this loop: while the rules are gone, everything is open.
        generation = -1
        while not self._stop.is_set():
            asked = self._check.wait(TICK)
            self._check.clear()
            now = self._state.generation()
            if asked or now != generation:
                generation = now
                self._mend()
                self._touched.set()

    def _keep_dockers(self) -> None:
        while not self._stop.is_set():
            # iptables-legacy does not raise the generation, so now and then a look without any sign.
            self._touched.wait(INTERVAL / 6)
            self._touched.clear()
            if self._stop.is_set():
                return
            self._docker_user.ensure()
            self._note_foreign()

    def _mend(self) -> None:
        try:
            if self._state.repair():
                log.warning("somebody removed docker-fw's rules; they stand again")
        except NftError as error:
            log.error("docker-fw's rules are gone and could not be put back: %s", error)

    def _answer_neighbours(self) -> None:
        while not self._stop.is_set():
            self._changed.wait(INTERVAL)
            self._changed.clear()
            self._neighbours.sync(self._state.networks, self._state.endpoints.values())

    def _note_foreign(self) -> None:
        """What leaves by a bridge that is not Docker's may pass Docker's firewall. Unsure means no.

        A bridge by which the host's default route leaves is the host's own; any other is believed foreign only
        after Docker has told its bridges without it. A name that nft would have to quote is nobody's.
        """
        with self._noting:
            bridges = others(self._links)
            dockers = {name for name in bridges if DOCKERS.fullmatch(name)} | (bridges & self._told)
            self._state.note_dockers(frozenset(dockers))
            bridges -= dockers
            if bridges and self._foreign is None:
                bridges &= self._links.default_route_links()
            self._state.note_foreign(frozenset(bridges if self._foreign is None else bridges & self._foreign))


def others(links: Links) -> set[str]:
    """The host's bridges that are not ours. A name that nft would have to quote is nobody's."""
    return {name for name, ours in links.bridges().items() if not ours and INTERFACE_NAME.fullmatch(name)}


def _knows(container: Container) -> Callable[[Endpoint], Endpoint]:
    return lambda endpoint: dataclasses.replace(endpoint, container=container) if endpoint.joined else endpoint
