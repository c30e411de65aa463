"""Test docker-fw with the capabilities of `kernel.capabilities` and no others, and the messages if some are missing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plugin.kernel.capabilities import NEEDED, NET_ADMIN, NET_BIND_SERVICE, NET_RAW
from tests.kernel.running import GUNICORN, Running
from tests.kernel.site import Site
from tests.waiting import until

KEPT = f"{sum(1 << number for number in NEEDED):016x}"
NAMES = {NET_ADMIN: "net_admin", NET_BIND_SERVICE: "net_bind_service", NET_RAW: "net_raw"}


class Limited(Running):
    """docker-fw with only these capabilities at its start, as a container has them."""

    command = GUNICORN
    given: tuple[int, ...] = ()

    def spawn(self) -> None:
        names = ",".join(f"+{NAMES[number]}" for number in self.given)
        there, run = self.site.host, self.site.host.popen

        def popen(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
            return run(["setpriv", "--bounding-set", f"-all,{names}", "--inh-caps", "-all", *argv], **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(there, "popen", popen)
            super().spawn()


@pytest.fixture
def limited(site: Site) -> Iterator[Limited]:
    with closing(Limited(site)) as made:
        yield made


def rights_of(process: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(\S+)", (process / "status").read_text(), re.MULTILINE))


def test_every_other_right_is_given_up_at_the_start(fw: Running) -> None:
    """Started as root with all capabilities, master, worker and each of its threads keep three.

    They pass none on, and no program that they start can gain more.
    """
    fw.start()
    assert fw.process
    for pid in (fw.process.pid, fw.worker()):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            rights = rights_of(thread)
            assert {rights[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {KEPT}
            assert {rights[kind] for kind in ("CapInh", "CapAmb")} == {"0" * 16}
            assert rights["NoNewPrivs"] == "1"


def test_with_these_rights_all_its_work_is_done(fw: Running) -> None:
    """The capabilities suffice for rules, links, sysctls, a host port below 1024, and the rule in DOCKER-USER.

    That rule is by iptables-legacy, which needs more than the other variant.
    """
    for stem in ("iptables", "ip6tables"):
        fw.site.run(f"{stem}-legacy", "-N", "DOCKER-USER")
    fw.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.publish(endpoint, 81, 8080)
    box = fw.move(endpoint)
    for stem in ("iptables", "ip6tables"):
        rules = [f"{stem}-legacy", "-S", "DOCKER-USER"]
        until(lambda rules=rules: "docker-fw" in fw.site.run(*rules).stdout, "the rule is active")
    with box.probe.serve(tcp=[8080, 9090]):
        assert fw.site.wan.probe.tcp("2001:db8:1::2", 8080) == "open"
        assert fw.site.wan.probe.tcp(str(Site.HOST4), 81) == "open"
        assert fw.site.wan.probe.tcp("2001:db8:1::2", 9090) == "silent"


def test_without_net_admin_it_says_what_to_do(limited: Limited) -> None:
    """The plugin prints one line with the remedy, exits with a failure status, and shows no traceback."""
    limited.given = (NET_BIND_SERVICE, NET_RAW)
    limited.spawn()
    assert limited.process
    assert limited.process.wait(20) not in (0, None)
    limited.process = None
    (line,) = limited.log.read_text().strip().splitlines()
    assert line.startswith("docker-fw: CAP_NET_ADMIN is missing")
    assert "cap_add: [NET_ADMIN" in line
    assert not limited.socket.exists()


def test_without_the_other_two_capabilities_the_loss_is_reported(limited: Limited) -> None:
    """The host's rules and links work; a host port below 1024 is refused with the kernel's error, one above is not."""
    limited.given = (NET_ADMIN,)
    limited.start()
    for number, loss in NEEDED.items():
        assert number == NET_ADMIN or loss in limited.log.read_text()
    network = limited.network(1)
    limited.well("CreateNetwork", network)
    endpoint = limited.start_container(network, 2)
    ports = {"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 81}]}
    assert "ermission denied" in limited.driver("ProgramExternalConnectivity", {**endpoint, "Options": ports})["Err"]
    limited.publish(endpoint, 8081, 80)


# --- mounts, one by one -------------------------------------------------------------------------------------------


@pytest.fixture
def lacking(site: Site, request: pytest.FixtureRequest) -> Iterator[Running]:
    """Start the plugin with one of the paths that are mounts in a container leading nowhere."""
    with closing(Running(site, **{request.param: "/proc/nowhere"})) as made:
        yield made.start()


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("FW_SYSCTL", "docker-fw needs the host's /proc/sys/net writable at /proc/nowhere"),
        ("FW_STATE", "could not write the state file /proc/nowhere"),
    ],
    indirect=["lacking"],
)
def test_without_a_mount_networks_of_the_driver_are_refused(lacking: Running, message: str) -> None:
    """The error names the mount; nothing half-made is left, and Docker bridges are closed as usual."""
    assert message in lacking.driver("CreateNetwork", lacking.network(1))["Err"]
    assert lacking.links() == set()
    assert "chain inbound" in lacking.table()


@pytest.mark.parametrize("lacking", ["FW_CGROUP"], indirect=True)
def test_without_the_control_groups_the_loss_is_reported(lacking: Running) -> None:
    """The loss is in the log and the status; everything else works."""
    until(lambda: "docker-proxy's control group is unknown" in lacking.log.read_text(), "the loss is in the log")
    assert not lacking.status()["proxy_known"]
    lacking.well("CreateNetwork", lacking.network(1))


@pytest.mark.parametrize("lacking", ["FW_DOCKER_SOCKET"], indirect=True)
def test_without_dockers_socket_containers_stay_closed_and_the_status_says_why(lacking: Running) -> None:
    """Calls are answered as usual; a container that joins accepts ICMP only."""
    network = lacking.network(1)
    lacking.well("CreateNetwork", network)
    lacking.start_container(network, 2, {"fw.allow": "8080"})
    assert lacking.opens("10.1.0.2") == set()
    assert not lacking.status()["listening"]
