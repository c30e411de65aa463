"""`fwctl dry-run`: what installing docker-fw would close on this host.

Reads Docker's API and the kernel, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugin.docker.client import DockerApi
from plugin.fwctl.api.status import guarded_networks
from plugin.model import Address, DockerUnavailable, FwError
from plugin.nftables import identity
from plugin.nftables.compile import compiled
from plugin.policy.flows import ClosedFlow
from plugin.settings import Settings
from plugin.state.closed_flows import closed_flows


def dry_run(settings: Settings) -> dict[str, Any]:
    """Return the report as data. Raises FwError that says what to do.

    "refuses": why docker-fw would not start, or ""; "guarded": Docker networks as in `GET /status`; "apart": containers
    that docker-fw does not protect; "cut": established connections that would be cut.
    """
    try:
        api = DockerApi(settings.docker_socket, trust_images=settings.trust_images)
        look = api.look()
    except DockerUnavailable as error:
        raise FwError(f"{error}; give it Docker's socket: -v /run:/host/run:ro, or FW_DOCKER_SOCKET=PATH") from error
    inventory = compiled(settings.defaults, look.facts()).view
    names = {a: e.container.name for e in look.endpoints if e.container for a in (e.addr4, e.addr6) if a}
    try:
        unmanaged = identity.find().unmanaged
        flows = closed_flows(inventory.answers_of(inventory.owners()))
    except OSError as error:
        raise FwError(
            f"could not list the established connections ({error.strerror}); run this with --network host and "
            "--cap-add NET_ADMIN"
        ) from error
    return {
        "refuses": identity.refusal(unmanaged),
        "guarded": guarded_networks(inventory, api.engine, settings.mark, {}),
        "apart": dict(look.not_guarded),
        "cut": [_cut(flow, names) for flow in flows],
    }


def _cut(flow: ClosedFlow, names: Mapping[Address, str]) -> dict[str, Any]:
    return {
        "from": str(flow.source),
        "container": names[flow.address],
        "address": str(flow.address),
        "port": flow.port,
        "proto": flow.proto,
    }
