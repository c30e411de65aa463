"""The composition root: builds all parts, takes over existing links and tables, starts and stops the loops."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from flask import Flask

from plugin import __version__
from plugin.daemon.long_lived import LongLived
from plugin.daemon.loops import Loops, Worker
from plugin.docker.bridges import Bridges
from plugin.docker.client import DockerApi
from plugin.docker.engine import refusal
from plugin.docker.follower import DockerFollower
from plugin.docker.proxy_ports import ProxyPorts, before
from plugin.docker.tracker import EndpointTracker
from plugin.driver.driver import Driver
from plugin.driver.host_ports import HostPorts
from plugin.driver.host_socket import raise_fd_limit
from plugin.driver.http import create_app
from plugin.driver.relay_loop import Relay
from plugin.fwctl.api.commands import AdminCommands
from plugin.fwctl.api.droplog import DropLog
from plugin.fwctl.api.droplog_http import add_route
from plugin.fwctl.api.queries import AdminQueries
from plugin.fwctl.api.routes import add_routes
from plugin.fwctl.host.boot_keeper import BootTableKeeper
from plugin.fwctl.host.closed_elements import saved_facts
from plugin.kernel import link_monitor
from plugin.kernel.cgroup import dockerd, proxies, shared
from plugin.kernel.docker_user import DockerUser
from plugin.kernel.instance_lock import claim
from plugin.kernel.links import Links, exists, lives
from plugin.kernel.names import host_side
from plugin.kernel.ndp_proxy import Neighbours
from plugin.kernel.neighbours import connected
from plugin.kernel.sock_diag import Listeners
from plugin.kernel.sysctl import Sysctl
from plugin.model import Endpoint, FwError, Published
from plugin.nftables import dump, identity
from plugin.nftables.table import KernelTable
from plugin.policy.facts import ProxyFacts
from plugin.policy.frozen import FrozenDict
from plugin.policy.overrides import expired
from plugin.policy.saved import SavedState
from plugin.settings import Settings, read
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store

log = logging.getLogger(__name__)


def _without(lost: Collection[Published]) -> Callable[[Endpoint], Endpoint]:
    return lambda e: dataclasses.replace(e, published=tuple(p for p in e.published if p not in lost))


def _survivors(state: SavedState) -> SavedState:
    """Return the part of the saved state that is still true. After a boot no endpoint is: Docker makes new ones.

    A joined endpoint exists as long as its link: both ends are removed with the container's network namespace.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if state.boot != boot:
        return dataclasses.replace(state, endpoints=FrozenDict(), boot=boot, switched=frozenset())
    alive: dict[str, Endpoint] = {}
    for e in state.endpoints.values():
        if not e.joined or lives(e.id):
            alive[e.id] = e
        elif exists(host_side(e.id)):  # killed amid a Join, which Docker repeats, or Docker took the pair back
            alive[e.id] = dataclasses.replace(e, joined=False, container=None, published=())
    return dataclasses.replace(state, endpoints=FrozenDict(alive))


class Plugin:
    """Everything that runs in one process. Its construction closes all that must be closed; `start` adds the loops."""

    def __init__(self, settings: Settings) -> None:
        self._claim = claim(settings.docker_socket)
        later = Worker()
        # libnftables' socket first: libnftables aborts if its number is 1024 or more.
        self._nft = nft = KernelTable(settings.mark, later=later)
        identity.refuse_foreign()
        raise_fd_limit()
        self._settings = settings
        sysctl = Sysctl(settings.sysctl)
        self._links = Links(sysctl)
        self._protected = dump.protected()
        listeners = self._close(Store(settings.state), later)
        self._relay = Relay()
        self._ports = HostPorts(self._relay)
        self._api = api = DockerApi(settings.docker_socket, trust_images=settings.trust_images)
        self._driver = Driver(
            self._state,
            self._links,
            sysctl,
            self._ports,
            api,
            wake=lambda: self._watcher.wake(),  # noqa: PLW0108 (made below)
            changed=lambda: self._watcher.changed(),  # noqa: PLW0108 (made below)
            refuse=settings.refuse,
            refusal=lambda: refusal(api.engine),
        )
        docker_user, neighbours = DockerUser(settings.mark), Neighbours(sysctl)
        self._drops = drops = DropLog(self._state, lambda: nft.features.logs)
        self._tracker = EndpointTracker(self._state)
        self._proxies = ProxyPorts(
            self._state, listeners, settings.dockerd_ports, lambda: (nft.features.cgroups, nft.features.listeners)
        )
        api.inspections.asks, api.inspections.lacks = self._proxies.asks, self._proxies.lacks
        self._follower = DockerFollower(
            api,
            self._state,
            self._tracker,
            self._bridges,
            self._proxies,
            write_bridges=lambda: self._watcher.write_bridges(),  # noqa: PLW0108 (made below)
            forget=self._driver.forget,
            sighted=lambda: self._watcher.write_proxies(),  # noqa: PLW0108
            connected=connected,
            listed=LongLived(),
        )
        self._boot = boot = BootTableKeeper(
            settings,
            lambda: self._state.state,
            self._bridges,
            lambda: self._state.facts.listed,
            lambda: nft.features.late_fib and nft.features.labels,
        )
        self._orders = AdminCommands(
            self._state,
            lambda: self._follower.not_guarded,
            wake=lambda: self._watcher.overrides_changed(),  # noqa: PLW0108 (made below)
        )
        self._questions = AdminQueries(
            self._state,
            nft,
            self._bridges,
            self._follower,
            api,
            settings,
            read=lambda more: read({**os.environ, **more}),
            proxy_unidentified=self._is_proxy_unidentified,
            held=self._proxies.held,
            boot=lambda: boot.report,
        )
        self._watcher = Loops(
            self._state,
            self._follower,
            self._tracker,
            self._bridges,
            docker_user,
            neighbours,
            later,
            lambda: self._proxies.look(ProxyFacts(*proxies(settings.cgroup, settings.dockerd_cgroup))),
            drops,
            self._orders.end,
            boot,
            self._protected,
        )

    def _close(self, store: Store, later: Worker) -> Listeners:
        """Write the table with what was saved and is still true. Return the listening ports of the host."""
        settings = self._settings
        self._state = Reconciler(self._nft, store, settings.defaults, later)
        store.sweep()
        saved = expired(store.load(), time.time())
        state = _survivors(saved)
        if saved.boot and saved.boot != state.boot:
            # The table that is there names Docker's bridges, but was loaded before they had a subnet.
            self._protected = frozenset()
        self._bridges = Bridges(self._links.default_route_links, state.unmanaged)
        self._bridges.see(link_monitor.links().values())
        # Read before the table is replaced: ports that listen only since the old one was written do not count as the
        # host's own until Docker has been asked.
        listeners = before(state, settings.sysctl, dump.listening())
        served = dict.fromkeys(dump.served(), time.monotonic())
        facts = saved_facts(state, settings, listeners).with_served_ports(served)
        # Containers that ended while docker-fw was stopped left flows, which later ones with their addresses must not
        # inherit.
        self._state.start(dataclasses.replace(facts, bridges=self._bridges.facts()), saved)
        return listeners

    def app(self) -> Flask:
        """Build the Flask application: the driver's protocol, fwctl's routes and the log of drops."""
        app = create_app(self._driver, self._questions)
        add_routes(app, self._orders, self._questions)
        add_route(app, self._drops)
        return app

    def _is_proxy_unidentified(self) -> bool:
        """True if docker-proxy is not identified by its control group: new listening host ports are then blocked."""
        settings = self._settings
        known = dockerd(settings.cgroup, settings.dockerd_cgroup) and shared(settings.cgroup)
        return not (self._nft.features.cgroups and known)

    def start(self, serving: Callable[[], bool] = lambda: True) -> None:
        """Restore links and ports, then start the loops. `serving`: whether requests are still accepted."""
        self._drops.serving = serving
        self._relay.start()
        self._rebuild()
        self._watcher.start()
        self._watcher.wake()
        self._watcher.changed()
        if self._is_proxy_unidentified():
            held = self._nft.features.listeners
            how = "stays closed until Docker confirms whose it is" if held else "is closed as soon as docker-fw sees it"
            log.warning(
                "docker-proxy's control group is unknown (FW_CGROUP, FW_DOCKERD_CGROUP): a new listening  "
                "port of the host %s",
                how,
            )
        log.info("docker-fw %s is ready: %d networks", __version__, len(self._state.networks))

    def stop(self) -> None:
        """End the loops. Rules, links and published ports' rules remain: closed ports stay closed without docker-fw.

        Ports open on Docker networks are closed, because Docker gives addresses to other containers without a report.
        Ports that `fwctl` opened for a limited time are closed until docker-fw runs again: no process would close them.
        """
        self._watcher.stop()
        self._tracker.end()
        self._state.suspend()
        self._relay.stop()
        try:
            # No process removes them from now on. The kernel finds the containers by itself.
            self._links.restore_addresses({bridge: [] for bridge in self._joined()})
        except OSError as error:
            log.error("the host's entries of containers' addresses remain: %s", error)

    def _joined(self) -> dict[str, list[Endpoint]]:
        """Return the joined endpoints by bridge."""
        found: dict[str, list[Endpoint]] = {network.bridge: [] for network in self._state.networks.values()}
        for endpoint in self._state.endpoints.values():
            if endpoint.joined and (network := self._state.networks.get(endpoint.network_id)):
                found[network.bridge].append(endpoint)
        return found

    def _rebuild(self) -> None:
        """Restore missing bridges (after a reboot), bridge ports and host ports. One failure never stops the others."""
        for network in self._state.networks.values():
            try:
                if self._links.make_bridge(network):
                    log.info("recreated bridge %s", network.bridge)
                # Also to an existing bridge: an older docker-fw did not bind ports to their MACs.
                self._links.reattach(network, [e for e in self._state.endpoints.values() if e.network_id == network.id])
            except (FwError, OSError) as error:
                log.error("network %s: %s", network.id[:12], error)
        try:
            self._links.sweep({host_side(e.id) for e in self._state.endpoints.values() if e.joined})
        except OSError as error:
            log.error("could not remove links left by a crash: %s", error)
        try:
            self._links.restore_addresses(self._joined())
        except OSError as error:
            log.error("the host's entries of containers' addresses are not checked: %s", error)
        for endpoint in self._state.endpoints.values():
            if endpoint.joined and endpoint.published:
                lost = self._ports.restore(endpoint.id, endpoint.published, addr4=endpoint.addr4, addr6=endpoint.addr6)
                if lost:
                    log.error(
                        "host ports are not restored, because another program has taken them: %s",
                        ", ".join(map(str, lost)),
                    )
                    self._state.edit_endpoint(endpoint.id, _without(lost))
