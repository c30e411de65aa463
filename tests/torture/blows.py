"""The failures of a host that runs docker-fw. Each blow is over when it returns, and counts what it did."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.product import Fw
from tests.waiting import until

from .bed import ORPHAN, OTHER_LABEL, Bed
from .image import IMAGE

Blow = Callable[[Bed], None]


def _killed(bed: Bed, victims: list[str]) -> None:
    bed.fw.host.run(["kill", "-9", *victims], check=False)
    bed.count("kills")
    until(lambda: not set(victims) & set(bed.fw.pids()), "the plugin's processes have ended")
    until(bed.fw.answers, "the plugin answers again")


def worker_killed(bed: Bed) -> None:
    _killed(bed, bed.fw.pids()[-1:])


def plugin_killed(bed: Bed) -> None:
    _killed(bed, bed.fw.pids())


def plugin_killed_amid_changes(bed: Bed) -> None:
    """Containers start while the plugin dies; failed starts are not checked here."""
    names = [f"amid{number}" for number in range(3)]
    for number, name in enumerate(names):
        if number == 1:
            bed.fw.host.run(["kill", "-9", *bed.fw.pids()], check=False)
            bed.count("kills")
        started = bed.fw.engine.try_docker("run", "-d", "--name", name, "--network", "tortured", IMAGE, "sleep", "inf")
        bed.count("starts", started.returncode == 0)
    until(bed.fw.answers, "the plugin answers again")
    bed.fw.remove(*names)


def plugin_disabled_and_enabled(bed: Bed) -> None:
    bed.fw.engine.docker("plugin", "disable", "-f", bed.fw.driver)
    bed.fw.engine.docker("plugin", "enable", bed.fw.driver)
    bed.count("restarts")


def plugin_upgraded(bed: Bed) -> None:
    """Upgrade the plugin to the other version, by the commands of README.md; skipped without versions."""
    if not bed.versions:
        return
    bed.versions.append(bed.versions.pop(0))
    fw, docker = bed.fw.driver, bed.fw.engine.docker
    docker("plugin", "disable", "-f", fw)
    docker("plugin", "upgrade", "--skip-remote-check", "--grant-all-permissions", fw, bed.versions[0], timeout=300)
    docker("plugin", "enable", fw)
    bed.count("upgrades")


def containers_and_networks_come_and_go(bed: Bed) -> None:
    """The addresses of the closed ports get other owners, too."""
    bed.remake()


def words_change(bed: Bed) -> None:
    """`fwctl deny` closes what a label opened, `fwctl revert` undoes that."""
    for place in bed.places:
        bed.fw.fwctl("deny", place.app, "8080")
        bed.fw.fwctl("revert", place.app)


def labels_change(bed: Bed) -> None:
    """Create each container again with the same addresses, without its label, and with it again, as compose does."""
    for place in bed.places:
        bed.run(place, OTHER_LABEL)
    until(bed.all_closed, "without the label nothing is open")
    for place in bed.places:
        bed.run(place)
        bed.count("labels", 2)


def dockerd_restarted(bed: Bed) -> None:
    bed.fw.engine.restart()
    bed.count("restarts")


def dockerd_killed(bed: Bed) -> None:
    bed.fw.engine.kill()
    bed.fw.engine.start()
    bed.count("restarts")


def _live_restore(bed: Bed, wanted: bool) -> None:
    bed.fw.engine.stop()
    bed.fw.engine.live_restore = wanted
    bed.fw.engine.start()
    bed.count("restarts")


def dockerd_killed_with_live_restore(bed: Bed) -> None:
    _live_restore(bed, True)
    try:
        dockerd_killed(bed)
    finally:
        _live_restore(bed, False)


def dockerd_hangs(bed: Bed) -> None:
    """Docker's socket accepts connections and sends nothing for a while; the worker is killed meanwhile."""
    dockerd = bed.fw.engine.pid
    # The lab's nsenter stops itself as soon as its child is stopped.
    parent = int(Path(f"/proc/{dockerd}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(dockerd, signal.SIGSTOP)
    try:
        _killed(bed, bed.fw.pids()[-1:])
    finally:
        os.kill(dockerd, signal.SIGCONT)
        os.kill(parent, signal.SIGCONT)


def host_rebooted(bed: Bed) -> None:
    with bed.host_down():
        bed.fw.engine.reboot()
    bed.count("boots")


def _nft(bed: Bed, *command: str) -> None:
    """Run another program's nft command.

    An owned table refuses it; another is fixed within the bound.
    """
    owned = bed.fw.status()["owned"]
    if not owned:
        now = time.monotonic()
        bed.orphaned(now, now + ORPHAN)
    bed.fw.host.run(["nft", *command], check=False)
    bed.count("flushes")


def table_deleted(bed: Bed) -> None:
    _nft(bed, "delete", "table", "inet", "docker-fw")


def chain_flushed(bed: Bed) -> None:
    _nft(bed, "flush", "chain", "inet", "docker-fw", "forward")


def set_flushed(bed: Bed) -> None:
    _nft(bed, "flush", "set", "inet", "docker-fw", "egress_restricted")


def _elements(bed: Bed, verb: str, port: int) -> None:
    of = zip("46", bed.places[0].addresses(), strict=True)
    _nft(bed, "; ".join(f"{verb} element inet docker-fw allow{v} {{ {address} . tcp . {port} }}" for v, address in of))


def elements_deleted(bed: Bed) -> None:
    """Delete the elements that open a port."""
    _elements(bed, "delete", 8080)


def elements_added(bed: Bed) -> None:
    """Add elements that open a port without any configuration for it."""
    _elements(bed, "add", 9090)


def ruleset_flushed(bed: Bed) -> None:
    """Flush the ruleset: Docker restores its own rules only when dockerd restarts."""
    _nft(bed, "flush", "ruleset")
    dockerd_restarted(bed)


def iptables_flushed(bed: Bed) -> None:
    for tool in ("iptables", "ip6tables"):
        bed.fw.host.run([tool, "-F"], check=False)
        bed.count("flushes")
    dockerd_restarted(bed)


def flushed_while_disabled(bed: Bed) -> None:
    """Flush a table without an owner: it is open until docker-fw is back, and no longer than the bound after that."""
    bed.fw.engine.docker("plugin", "disable", "-f", bed.fw.driver)
    since = time.monotonic()
    bed.fw.host.run(["nft", "flush", "ruleset"])
    bed.count("flushes")
    bed.fw.engine.docker("plugin", "enable", bed.fw.driver)
    bed.orphaned(since, time.monotonic() + ORPHAN)
    dockerd_restarted(bed)


def state_files(fw: Fw) -> list[Path]:
    return list((fw.host.inside / "var/lib/docker/plugins").glob("*/propagated-mount/state.json*"))


def _state_spoilt(bed: Bed, spoil: Callable[[Path], object]) -> None:
    """Damage the state, and follow the documentation: networks are removed and created again."""
    bed.fw.engine.docker("plugin", "disable", "-f", bed.fw.driver)
    for path in state_files(bed.fw):
        spoil(path)
    if bed.fw.engine.try_docker("plugin", "enable", bed.fw.driver).returncode:
        for path in state_files(bed.fw):
            path.unlink()
        bed.fw.engine.docker("plugin", "enable", bed.fw.driver)
    bed.remake()


def state_cut(bed: Bed) -> None:
    _state_spoilt(bed, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))


def state_garbage(bed: Bed) -> None:
    _state_spoilt(bed, lambda path: path.write_bytes(b"\0\xff{[" * 100))


def _refusal(bed: Bed, *arguments: str) -> str:
    try:
        bed.fw.fwctl(*arguments)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    return ""


def disk_full(bed: Bed) -> None:
    """Nothing new starts, `fwctl` closes and reports that this may not last, and the plugin is killed meanwhile."""
    full = state_files(bed.fw)[0].with_name("state.json.new")
    full.symlink_to("/dev/full")
    try:
        refused = bed.fw.engine.try_docker("network", "create", "-d", bed.fw.driver, "refused")
        assert "No space left on device" in refused.stderr, refused.stderr
        assert "No space left on device" in bed.fw.fwctl("status")
        assert "No space left on device; the change is in effect" in _refusal(bed, "deny", bed.places[0].app, "8080")
        assert bed.missing(), "fwctl deny closes nothing"
        worker_killed(bed)
    finally:
        full.unlink()
    until(lambda: not bed.fw.status()["unsaved"], "everything is on the disk again")
    bed.fw.fwctl("revert", bed.places[0].app)


#: All blows: the long run draws from these.
BLOWS: tuple[Blow, ...] = (
    worker_killed,
    plugin_killed,
    plugin_killed_amid_changes,
    plugin_disabled_and_enabled,
    plugin_upgraded,
    containers_and_networks_come_and_go,
    words_change,
    labels_change,
    dockerd_restarted,
    dockerd_killed,
    dockerd_killed_with_live_restore,
    dockerd_hangs,
    host_rebooted,
    table_deleted,
    chain_flushed,
    set_flushed,
    elements_deleted,
    elements_added,
    ruleset_flushed,
    iptables_flushed,
    flushed_while_disabled,
    state_cut,
    state_garbage,
    disk_full,
)
#: For the tests: the quick ones that have no test of their own under fire.
SHORT: tuple[Blow, ...] = (
    worker_killed,
    plugin_killed_amid_changes,
    containers_and_networks_come_and_go,
    words_change,
    table_deleted,
    chain_flushed,
    set_flushed,
    dockerd_hangs,
    disk_full,
)
#: Blows during which containers and dockerd run on, and nothing is closed on purpose: open ports should not notice.
LASTING = {
    blow.__name__
    for blow in (
        worker_killed,
        plugin_killed,
        plugin_disabled_and_enabled,
        plugin_upgraded,
        table_deleted,
        chain_flushed,
        set_flushed,
        elements_deleted,
        elements_added,
    )
} | {"storm_of_starts", "storm_of_kills"}
