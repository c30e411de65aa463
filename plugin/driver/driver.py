"""One method per call of libnetwork's NetworkDriver.

Each is idempotent and bounded in time; a failed call leaves nothing behind.

Order of a start: CreateEndpoint → Join → ProgramExternalConnectivity → the process runs. The rules for the container's
inbound traffic are active when Join returns, so before the container's first instruction. Order of a stop: (Revoke) →
Leave → DeleteEndpoint. Each of these undoes all that it finds, because Docker omits some of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from plugin.driver import protocol
from plugin.driver.host_ports import HostPorts
from plugin.driver.macs import settled
from plugin.kernel.links import Links, exists, lives
from plugin.kernel.names import bridge_name, container_side, host_side
from plugin.kernel.sysctl import Sysctl
from plugin.model import Container, DockerUnavailable, Endpoint, FwError, Network
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
Reply = dict[str, Any]


class Finds(Protocol):
    """The part of Docker's API that a hook may use."""

    def find(self, network_id: str, endpoint_id: str) -> Container | None:
        """Return the container of an endpoint, with its labels, or None. Bounded in time. Raises DockerUnavailable."""


class Driver:
    """The driver's calls.

    `refuse`: a container with a wrong label does not start; otherwise it starts, and stays closed. `refusal`: why no
    container may join on this engine, "" if it may.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        links: Links,
        sysctl: Sysctl,
        ports: HostPorts,
        api: Finds,
        wake: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        *,
        refuse: bool = True,
        refusal: Callable[[], str] = lambda: "",
    ) -> None:
        self._refuse = refuse
        self._refusal = refusal
        self._state = reconciler
        self._links = links
        self._sysctl = sysctl
        self._ports = ports
        self._api = api
        self._wake = wake
        self._changed = changed
        #: By network that no call has completed yet: the calls in progress. Changes within edits.
        self._creating: dict[str, set[object]] = {}

    def create_network(self, body: Any) -> Reply:
        """NetworkDriver.CreateNetwork: create the bridge and store the network. Raises FwError."""
        network = protocol.create_network(body, bridge_name)
        self._refuse_engine()
        known = self._state.networks
        _admitted(network, known)
        if network.id not in known and (overlap := self._links.overlap(network)):
            raise FwError(f"{overlap}; choose another --subnet")
        call = object()
        try:
            # The policy first: when the bridge appears, the rules that close it are already active.
            self._state.edit_state(lambda state: state.with_network(self._begin(network, state.networks, call)))
            self._links.make_bridge(network)
            self._forward(network)
            self._state.wait_saved()  # also what an earlier call for this network has changed
        except FwError:
            self._undo(network, call)
            raise
        self._state.read(lambda _: self._creating.pop(network.id, None))
        self._wake()
        return {}

    def _begin(self, network: Network, known: Mapping[str, Network], call: object) -> Network:
        # Checked within the change: of two requests for the same name or subnet the second sees the first.
        _admitted(network, known)
        if network.id not in known or network.id in self._creating:
            self._creating.setdefault(network.id, set()).add(call)
        return network

    def _undo(self, network: Network, call: object) -> None:
        """Forget a network whose creation failed, unless another call that repeats the request goes on, or is done.

        Between the two steps the bridge is closed as well: by its group, without any knowledge.
        """
        undone: list[Network] = []

        def edit(state: Any) -> Any:
            calls = self._creating.get(network.id, set())
            calls.discard(call)
            if calls or self._creating.pop(network.id, None) is None:
                return state
            undone.append(network)
            return state.without_network(network.id, [e.id for e in self._state.on(network.id)])

        try:
            self._state.edit_state(edit)
        finally:
            for each in undone:
                self._links.delete_bridge(each)

    def delete_network(self, body: Any) -> Reply:
        """NetworkDriver.DeleteNetwork: remove the bridge and forget the network; unknown ones are ignored."""
        network_id = protocol.identifier(body, "NetworkID")
        network = self._state.networks.get(network_id)
        if network is None:
            self._links.delete_bridge_of(network_id)  # the saved state was lost, and Docker still knows the network
            return {}
        for endpoint in self._state.on(network.id):
            self._remove(endpoint)
        # The bridge first, its policy after: no part of it is open in between.
        self._links.delete_bridge(network)
        self._state.drop_network(network.id)
        return {}

    def create_endpoint(self, body: Any) -> Reply:
        """NetworkDriver.CreateEndpoint: store addresses and MAC. Raises FwError."""
        endpoint = protocol.create_endpoint(body)
        self._refuse_engine()
        _refuse_outside(self._network(endpoint.network_id), endpoint)
        self._forget_others(endpoint)
        # One at a time: of two requests for the same MAC at the same moment the second must see the first.
        known = self._state.add_endpoint(
            endpoint.id,
            lambda view: dataclasses.replace(
                endpoint, mac=settled(endpoint, lambda mac: view.at(endpoint.network_id, mac))
            ),
        )
        if (known.network_id, known.addr4, known.addr6) != (endpoint.network_id, endpoint.addr4, endpoint.addr6):
            raise FwError(f"endpoint {endpoint.id[:12]} exists already with other addresses")
        if endpoint.mac not in ("", known.mac):
            raise FwError(f"endpoint {endpoint.id[:12]} exists already with another MAC address")
        return {"Interface": {} if endpoint.mac else {"MacAddress": known.mac}}

    def delete_endpoint(self, body: Any) -> Reply:
        """NetworkDriver.DeleteEndpoint: close and forget the endpoint; unknown ones are ignored."""
        protocol.identifier(body, "NetworkID")
        endpoint = self._state.endpoints.get(protocol.identifier(body, "EndpointID"))
        if endpoint is not None:
            self._remove(endpoint)
        return {}

    def endpoint_info(self, body: Any) -> Reply:
        """NetworkDriver.EndpointOperInfo: the endpoint's MAC address. Raises FwError."""
        endpoint = self._endpoint(body)
        # Docker shows none of it for a remote driver; it is here for clients that ask the driver.
        return {"Value": {"com.docker.network.endpoint.macaddress": endpoint.mac}}

    def join(self, body: Any) -> Reply:
        """NetworkDriver.Join: attach the veth pair and apply the container's labels. Raises FwError."""
        endpoint = self._endpoint(body)
        network = self._network(endpoint.network_id)
        self._forget_others(endpoint)
        self._forward(network)
        self._restore_bridge(network)
        self._links.attach(network, endpoint)
        try:
            container = self._find(endpoint)
            if container is not None and container.problems and self._refuse:
                raise FwError(f"{container.name}: " + "; ".join(map(str, container.problems)))
            if not self._state.edit_endpoint(
                endpoint.id, lambda e: dataclasses.replace(e, joined=True, container=container or e.container)
            ):
                raise _unknown(endpoint.id, network.id)
        except FwError:
            self._detach_or_log(network, endpoint)  # Docker gets the reason for the refusal
            raise
        self._changed()
        if container is None:
            self._wake()
        reply: Reply = {
            "InterfaceName": {"SrcName": container_side(endpoint.id), "DstPrefix": network.iface_prefix},
            # Without this Docker attaches docker_gwbridge too, with the published ports on it, past the policy.
            "DisableGatewayService": True,
        }
        if not network.internal:
            if network.gateway4 and endpoint.addr4:
                reply["Gateway"] = str(network.gateway4.ip)
            if network.gateway6 and endpoint.addr6:
                reply["GatewayIPv6"] = str(network.gateway6.ip)
        return reply

    def leave(self, body: Any) -> Reply:
        """NetworkDriver.Leave: close the endpoint, then delete its link; unknown ones are ignored."""
        protocol.identifier(body, "NetworkID")
        endpoint = self._state.endpoints.get(protocol.identifier(body, "EndpointID"))
        if endpoint is not None:
            self._close(endpoint)
        return {}

    def program_external_connectivity(self, body: Any) -> Reply:
        """NetworkDriver.ProgramExternalConnectivity: publish ports. Raises FwError."""
        endpoint = self._endpoint(body)
        network = self._network(endpoint.network_id)
        bindings = protocol.port_bindings(body)
        if network.internal or not bindings:
            return {}
        published = self._ports.publish(
            endpoint.id, bindings, default_host_ip=network.host_ip, addr4=endpoint.addr4, addr6=endpoint.addr6
        )
        try:
            self._links.hairpin(endpoint)
            if not self._state.edit_endpoint(endpoint.id, lambda e: dataclasses.replace(e, published=published)):
                raise _unknown(endpoint.id, network.id)
        except FwError:
            self._ports.release(endpoint.id)
            raise
        return {}

    def revoke_external_connectivity(self, body: Any) -> Reply:
        """NetworkDriver.RevokeExternalConnectivity: withdraw all published ports."""
        protocol.identifier(body, "NetworkID")
        endpoint = self._state.endpoints.get(protocol.identifier(body, "EndpointID"))
        if endpoint is not None:
            self._unpublish(endpoint)
        return {}

    def _forward(self, network: Network) -> None:
        # Closed first: no packet passes that the host did not forward before.
        missing = self._sysctl.missing(network)
        self._state.note_switched(missing)
        self._sysctl.forward(missing)

    def _find(self, endpoint: Endpoint) -> Container | None:
        try:
            return self._api.find(endpoint.network_id, endpoint.id)
        except DockerUnavailable as error:
            log.info("endpoint %s answers on ICMP only until its labels are known: %s", endpoint.id[:12], error)
            return None

    def _close(self, endpoint: Endpoint) -> None:
        """Close the address first; then release its ports, delete its link and cut its flows."""

        try:
            self._state.edit_endpoint(
                endpoint.id,
                lambda e: dataclasses.replace(e, joined=False, container=None, published=()),
                lambda: self._release(endpoint),  # also if disk or kernel fail
            )
        finally:
            self._changed()

    def forget(self, gone: Endpoint | Network) -> None:
        """Undo what Docker does not have any more: its Leave, DeleteEndpoint or DeleteNetwork never arrived.

        An endpoint that has changed meanwhile stays: a call about it did arrive.
        """
        if isinstance(gone, Network):
            log.warning(
                "Docker does not list network %s any more, and did not delete it; removing its bridge", gone.id[:12]
            )
            self.delete_network({"NetworkID": gone.id})
        elif self._state.endpoints.get(gone.id) is gone:
            _log_obsolete(gone)
            if gone.joined or gone.published:
                self._close(gone)
            self._drop_unjoined(gone.id)

    def _drop_unjoined(self, endpoint_id: str) -> None:
        """Forget an endpoint, unless it has joined meanwhile."""

        def edit(state: Any) -> Any:
            endpoint = state.endpoints.get(endpoint_id)
            return state if endpoint and endpoint.joined else state.without_endpoint(endpoint_id)

        self._state.edit_state(edit)

    def _release(self, endpoint: Endpoint) -> None:
        """Release the endpoint's host ports, and delete its link: no other endpoint inherits them."""
        try:
            self._ports.release(endpoint.id)
        finally:
            self._links.detach(self._state.networks.get(endpoint.network_id), endpoint)

    def _detach_or_log(self, network: Network, endpoint: Endpoint) -> None:
        try:
            self._links.detach(network, endpoint)
        except OSError as error:
            log.error("the link of endpoint %s is not removed: %s", endpoint.id[:12], error)

    def _forget_others(self, endpoint: Endpoint) -> None:
        """Forget other endpoints that are obsolete.

        Docker's IPAM gave the addresses to this endpoint, so another endpoint here with one of them is obsolete. So is
        one that has the same MAC and had a link, and has none any more.
        """
        mine = {address for address in (endpoint.addr4, endpoint.addr6) if address}
        for other in self._state.read(lambda view: view.at(endpoint.network_id, *mine, endpoint.mac)):
            if other.id != endpoint.id:
                gone = other.joined and other.mac == endpoint.mac != "" and not exists(host_side(other.id))
                if other.addr4 not in (None, endpoint.addr4) and other.addr6 in mine and lives(other.id):
                    self._drop_addr6(other)
                elif gone or mine & {other.addr4, other.addr6}:
                    _log_obsolete(other)
                    self._remove(other)

    def _drop_addr6(self, endpoint: Endpoint) -> None:
        """Take the IPv6 address from a running container, and leave the rest.

        Docker 29 releases it without telling the driver if a sysctl of the endpoint disables IPv6 in the container
        (moby's libnetwork/endpoint.go, releaseIPv6Address), and gives it to the next one.
        """
        log.warning("Docker gave %s of endpoint %s to another container", endpoint.addr6, endpoint.id[:12])

        def release() -> None:
            try:
                self._ports.drop_addr6(endpoint.id)
            finally:
                network = self._state.networks.get(endpoint.network_id)
                self._links.forget_addresses(network, dataclasses.replace(endpoint, addr4=None))

        self._state.edit_endpoint(endpoint.id, lambda e: dataclasses.replace(e, addr6=None), release)
        self._changed()

    def _restore_bridge(self, network: Network) -> None:
        if not exists(network.bridge):
            log.warning("bridge %s is missing; recreating it", network.bridge)
            self._links.make_bridge(network)
            self._links.reattach(network, self._state.on(network.id))

    def _remove(self, endpoint: Endpoint) -> None:
        if endpoint.joined or endpoint.published:
            self._close(endpoint)
        else:  # its Leave may have failed half way
            self._release(endpoint)
        self._state.drop_endpoint(endpoint.id)

    def _unpublish(self, endpoint: Endpoint) -> None:
        self._state.edit_endpoint(endpoint.id, lambda e: dataclasses.replace(e, published=()))
        self._ports.release(endpoint.id)

    def _refuse_engine(self) -> None:
        if why := self._refusal():
            raise FwError(why)

    def _network(self, network_id: str) -> Network:
        network = self._state.networks.get(network_id)
        if network is None:
            raise FwError(
                f"docker-fw does not know network {network_id[:12]}; if its state was lost, remove the network "
                "(docker network rm) and create it again"
            )
        return network

    def _endpoint(self, body: Any) -> Endpoint:
        network_id = protocol.identifier(body, "NetworkID")
        endpoint = self._state.endpoints.get(protocol.identifier(body, "EndpointID"))
        if endpoint is None or endpoint.network_id != network_id:
            raise _unknown(body["EndpointID"], network_id)
        return endpoint


def _log_obsolete(endpoint: Endpoint) -> None:
    log.warning(
        "Docker does not list endpoint %s any more, and did not delete it; closing its addresses", endpoint.id[:12]
    )


def _unknown(endpoint_id: str, network_id: str) -> FwError:
    return FwError(
        f"docker-fw does not know endpoint {endpoint_id[:12]} on network {network_id[:12]}; restart the container"
    )


def _admitted(network: Network, known: Mapping[str, Network]) -> Network:
    """Return the network, if it equals the known one, or is new and does not conflict with another. Raises FwError."""
    if known.get(network.id, network) != network:
        raise FwError(f"network {network.id[:12]} exists already with other options")
    for other in known.values() if network.id not in known else ():
        if other.bridge == network.bridge:
            raise FwError(f"bridge name {network.bridge} is taken by network {other.id[:12]}")
        for mine, theirs in ((network.gateway4, other.gateway4), (network.gateway6, other.gateway6)):
            if mine and theirs and mine.network.overlaps(theirs.network):
                raise FwError(f"{mine.network} overlaps {theirs.network} of network {other.id[:12]}")
    return network


def _refuse_outside(network: Network, endpoint: Endpoint) -> None:
    for address, gateway in ((endpoint.addr4, network.gateway4), (endpoint.addr6, network.gateway6)):
        if address and (gateway is None or address not in gateway.network):
            where = f"is outside {gateway.network}" if gateway else "has no subnet on the network"
            raise FwError(f"address {address} {where}; choose another --ip or --ip6")
