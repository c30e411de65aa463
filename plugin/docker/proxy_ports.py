"""Host ports on which a docker-proxy may listen before Docker lists its container. They stay closed until then.

If docker-proxy is identified by its control group, this concerns dockerd's own ports, which are open: those that a
container requests are closed, and while the requests of a container are unknown, so are those without a listener. And
it concerns protocols for which no rule finds a socket (SCTP), as soon as a container may publish a port of one: any new
listener is blocked at first (`plugin.kernel.sock_diag`). On other hosts that is so for all protocols.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from plugin.docker.snapshot import DockerSnapshot
from plugin.kernel.sock_diag import Listeners
from plugin.model import Published, RequestedPorts, Rule
from plugin.policy.facts import Facts, ProxyFacts
from plugin.policy.frozen import frozen
from plugin.policy.saved import SavedState
from plugin.protocols import NUMBER, UNFOUND
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
#: Ports from here on change owners often (ephemeral ports). Used if the host's range cannot be read.
PASSING = 32768
#: Seconds between two polls of listeners if none is blocked: a poll of 10,000 sockets takes 70 ms.
IDLE = 5.0
#: A host port: the IP protocol's number, and the port number.
Port = tuple[int, int]


class ProxyPorts:
    """Thread-safe. The reconciler is never called under the lock here, so a poll of the kernel holds up no change.

    `dockerd`: dockerd's own ports. `kinds`: whether the kernel can match control groups, and whether it can block a
    new listener.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        listeners: Listeners,
        dockerd: Collection[Rule],
        kinds: Callable[[], tuple[bool, bool]] = lambda: (True, True),
    ) -> None:
        self._state = reconciler
        self._listeners = listeners
        self._dockerd = dockerd
        self._kinds = kinds
        self._lock = threading.Lock()
        self._asked: dict[str, tuple[RequestedPorts, ...]] = {}
        #: The time each container was reported by itself, and the containers whose requested ports are unknown.
        self._since: dict[str, float] = {}
        self._unknown: set[str] = set()
        self._listening: frozenset[Published] = frozenset()
        #: By container, the ports of dockerd that it requests; most request none.
        self._claims: dict[str, frozenset[Port]] = {}
        #: How many containers request a port of each of `plugin.protocols.UNFOUND`, by number.
        self._unfounds = Counter[int]()
        #: Changes that the next `_keep` saves. None: the container requests no port, or does not exist.
        self._changed: dict[str, tuple[RequestedPorts, ...] | None] = {}
        self._warned: frozenset[Port] = frozenset()
        self._unidentified = False
        #: The time of the last poll.
        self._looked = -IDLE
        self._kept = frozen(reconciler.state.asked)
        for container, ports in self._kept.items():
            self._set(container, ports)
        self._changed = {}
        #: For the facts. An edit reads the newest of it, without the lock, whichever thread has found it.
        self._open = own_ports(dockerd, ()).difference(*self._claims.values())
        self._unfound = frozenset(self._unfounds)
        self._found: tuple[ProxyFacts, frozenset[Published], frozenset[Published]] | None = None

    # --- ports that containers request ----------------------------------------------------------------------------

    def created(self, container_id: str) -> None:
        """Note that Docker created a container.

        Its requested ports are unknown, and it may start before they are known.
        """
        with self._lock:
            self._since[container_id] = self._listeners.now()
            self._listeners.doubt()  # Docker's last list did not have it
            if container_id not in self._asked:
                self._unknown.add(container_id)
                self._note()
            else:  # its inspection was faster
                self._keep()
        self._publish()

    def asks(self, container_id: str, ports: tuple[RequestedPorts, ...]) -> None:
        """Note which ports of the host a container requests."""
        with self._lock:
            self._since.setdefault(container_id, self._listeners.now())
            self._set(container_id, ports)
            alone = container_id in self._unknown
            self._unknown.discard(container_id)
            self._note()
            if alone:  # the others are saved together, after a full listing
                self._keep()
        self._publish()

    def lacks(self, containers: Iterable[str]) -> list[str]:
        """Return those of the containers whose requested ports are unknown."""
        with self._lock:
            return [each for each in containers if each not in self._asked]

    def forget(self, container_id: str) -> None:
        """Forget a container that does not exist any more."""
        with self._lock:
            self._drop([container_id])
        self._publish()

    def _drop(self, containers: Iterable[str]) -> None:
        for each in containers:
            self._set(each, None)
            self._since.pop(each, None)
            self._unknown.discard(each)
        self._note()
        self._keep()

    def _set(self, container_id: str, ports: tuple[RequestedPorts, ...] | None) -> None:
        """Note the ports that a container requests; None: unknown. Searches no other container."""
        before = self._asked.pop(container_id, ())
        self._claims.pop(container_id, None)
        if ports is not None:
            self._asked[container_id] = ports
            if found := claimed(self._dockerd, ports):
                self._claims[container_id] = found
        if ports != before:
            self._changed[container_id] = ports or None
            self._unfounds.update(published_unfound([ports or ()]))
            self._unfounds -= Counter(published_unfound([before]))

    def _keep(self) -> None:
        more = {container: ports for container, ports in self._changed.items() if ports}
        self._kept = self._kept.replace(more, self._changed)
        self._changed = {}

    def _note(self) -> None:
        taken = frozenset().union(*self._claims.values())
        left = own_ports(self._dockerd, ()) - taken
        if closed := taken - self._warned:
            ports = ", ".join(sorted({str(number) for _, number in closed}))
            log.warning("containers request ports of dockerd itself, which are therefore closed: %s", ports)
            self._warned |= closed
        if self._unknown:
            self._look_around()
            left &= self._listeners.everybody()
        self._open = left
        self._unfound = frozenset(UNFOUND.values() if self._unknown else self._unfounds)

    def _publish(self) -> None:
        def keep(state: SavedState) -> SavedState:
            requested = self._kept
            return state if requested is state.asked else replace(state, asked=requested)

        def edit(facts: Facts) -> Facts:
            if (facts.dockerd, facts.unfound) != (self._open, self._unfound):
                facts = replace(facts, dockerd=self._open, unfound=self._unfound)
            return facts.keeping(keep)

        self._state.observe(edit)

    # --- listeners ------------------------------------------------------------------------------------------------

    def judge(self, look: DockerSnapshot, asked: float) -> None:
        """Apply Docker's answer to a full listing, requested at `asked` (of the listeners' clock)."""
        with self._lock:
            if look.complete:
                gone = [each for each in self._asked.keys() | self._unknown if each not in look.container_ids]
                self._drop([each for each in gone if self._since.get(each, 0.0) < asked])
            self._keep()
            known = look.complete and look.published is not None and look.container_ids <= self._asked.keys()
            wanted = [each for ports in self._asked.values() for each in ports]
            self._listeners.judge(asked, look.published or (), wanted, known=known)
            if self._unknown:
                self._listeners.doubt()
        self._publish()

    def look(self, proxies: ProxyFacts) -> None:
        """Poll the listeners, and publish them together with docker-proxy's control groups. To be called often."""
        groups, holds = self._kinds()
        proxy_unidentified = not groups or proxies.holding
        with self._lock:
            self._unidentified = proxy_unidentified
            # If no listener is blocked, the poll prepares for the case that this changes: listeners since the last
            # poll are new then.
            if proxy_unidentified or self._listeners.now() - self._looked >= IDLE:
                self._look_around()
            suspects = frozenset[Published]() if holds or not proxy_unidentified else frozenset(self._listeners.held())
            listening = frozenset(p for p in self._listening if holds and (proxy_unidentified or p.proto in UNFOUND))
            self._found = found = (proxies, listening, suspects)

        def edit(facts: Facts) -> Facts:
            proxies, listening, suspects = self._found or found
            if (facts.proxies, facts.listening, facts.suspects) == (proxies, listening, suspects):
                return facts
            return replace(facts, proxies=proxies, listening=listening, suspects=suspects)

        self._state.observe(edit)

    def _look_around(self) -> None:
        self._looked = self._listeners.now()
        try:
            self._listening = self._listeners.poll()
        except OSError as error:
            log.error("could not list the listeners on the host's ports: %s", error)

    def now(self) -> float:
        """Return the current moment. Take it before a request to Docker, and pass it on with the answer."""
        return self._listeners.now()

    def waiting(self) -> bool:
        """True if a listener is blocked, and Docker has not been asked since it appeared."""
        with self._lock:
            return self._unidentified and self._listeners.waiting()

    def held(self) -> list[Published]:
        """Return the host ports that are blocked, and not known to belong to a container."""
        with self._lock:
            return self._listeners.held() if self._unidentified else []


def own_ports(dockerd: Collection[Rule], asked: Iterable[RequestedPorts]) -> frozenset[Port]:
    """Return dockerd's own ports without those that containers request."""
    return _ports(dockerd) - claimed(dockerd, asked)


def published_unfound(asked: Iterable[Iterable[RequestedPorts]]) -> frozenset[int]:
    """Return the protocols, by number, of these requested ports for which no rule finds a socket."""
    named = {each.proto for ports in asked for each in ports}
    return frozenset(number for name, number in UNFOUND.items() if name in named)


def claimed(dockerd: Collection[Rule], asked: Iterable[RequestedPorts]) -> frozenset[Port]:
    """Return the ports of dockerd that containers request, on any address."""
    return _ports(
        Rule(rule.proto, max(rule.first, each.first), min(rule.last, each.last))
        for each in asked
        for rule in dockerd
        if rule.proto == each.proto and max(rule.first, each.first) <= min(rule.last, each.last)
    )


def _ports(rules: Iterable[Rule]) -> frozenset[Port]:
    return frozenset((NUMBER[rule.proto], port) for rule in rules for port in range(rule.first, rule.last + 1))


def passing(sysctl: str) -> int:
    """Return the first port that Docker chooses by itself; `sysctl` is the host's /proc/sys/net."""
    try:
        return min(PASSING, int((Path(sysctl) / "ipv4/ip_local_port_range").read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return PASSING


def before(state: SavedState, sysctl: str, known: Collection[Published] | None) -> Listeners:
    """Return the listeners at a start; `known`: those of the table in the kernel."""
    closed = (
        RequestedPorts(p.proto, p.host_ip, p.host_port, p.host_port) for ports in state.proxied.values() for p in ports
    )
    wanted = (each for ports in state.asked.values() for each in ports)
    return Listeners(known=known, asked=[*closed, *wanted], passing=passing(sysctl))
