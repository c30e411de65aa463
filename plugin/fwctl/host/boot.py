"""`fwctl boot install` and `fwctl boot remove`: the sidecar's boot table and its systemd unit."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

from plugin.docker.client import DockerApi
from plugin.fwctl.host import boot_keeper, boot_table, boot_unit
from plugin.kernel.links import Links
from plugin.kernel.sysctl import Sysctl
from plugin.model import DockerUnavailable, FwError
from plugin.settings import Settings


def install(root: Path, settings: Settings) -> str:
    """Write the table and its unit below the host's root; return the report. Raises FwError."""
    nft = boot_unit.find_nft(root)
    uplinks = Links(Sysctl(settings.sysctl)).default_route_links
    api = DockerApi(settings.docker_socket, trust_images=settings.trust_images)
    bridges = boot_table.bridges(api, uplinks)
    try:
        look = api.look()
    except DockerUnavailable as error:
        raise FwError(str(error)) from error
    bans = boot_keeper.ask_running(root, "/bans").get("bans", [])
    until = {ip_network(ban["address"]): ban["until"] or 0 for ban in bans}
    text = _accepted(root, nft, lambda late: boot_table.first_text(look, bridges, until, settings, late_fib=late))
    changed = boot_unit.install(root, nft, text)
    return boot_unit.installed(changed, bridges[1], boot_keeper.why_not_kept(root))


def _accepted(root: Path, nft: str, text: Callable[[bool], str]) -> str:
    """Return the table in the form that the host's nft and kernel accept (`Features.late_fib`). Raises FwError."""
    newer, older = text(True), text(False)
    try:
        boot_unit.check(root, nft, newer)
    except FwError as error:
        try:
            boot_unit.check(root, nft, older)
        except FwError:
            raise error from None
        return older
    return newer


def remove(root: Path) -> str:
    """Remove the table's file and its unit; return the report. Raises FwError."""
    return boot_unit.removed(boot_unit.remove(root))
