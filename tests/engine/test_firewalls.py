"""Test hosts with ufw or firewalld: these protect the host, docker-fw the containers, and neither breaks the other."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.engine.firewall_commands import UFW_ROUTES, ZONE_OF_DOCKER, ZONE_OF_OURS
from tests.lab import Engine, Hammer, Host, Process, Target, Verdict, engine_root
from tests.product import DEEP, FIREWALLS, ROOT, Fw, with_plugin
from tests.waiting import until


@dataclass(frozen=True)
class Site:
    """Two containers with ports 80, 5432 and 8080, where a label opens 8080.

    One is on a Docker bridge, one on a docker-fw network. They publish the ports as 18080, 15432, 18088 and 28080,
    25432, 28088.
    """

    fw: Fw
    theirs: str
    ours: str
    theirs_at: tuple[str, ...]
    ours_at: tuple[str, ...]
    #: Docker itself publishes on IPv6, and has a DOCKER-USER there.
    docker_does_v6: bool

    def closed(self) -> list[Target]:
        """Return what must never answer."""
        at_host: list[Target] = [("tcp", h, p) for h in (self.fw.host.v4, self.fw.host.v6) for p in (15432, 25432)]
        return [*at_host, *(("tcp", a, 5432) for a in (*self.theirs_at, *self.ours_at))]

    def direct(self, *addresses: str) -> list[Target]:
        """Return what the docker-fw network opens on the container's own addresses."""
        return [("tcp", a, p) for a in addresses or self.ours_at for p in (80, 8080)]

    def published(self) -> list[Target]:
        """Return what is published and open.

        Where docker-proxy serves it, only what the firewall accepts for the host.
        """
        v4, v6 = self.fw.host.v4, self.fw.host.v6
        theirs: list[Target] = [("tcp", v4, 18080), ("tcp", v6, 18080), ("tcp", v4, 18088)]
        return [
            *theirs,
            *([("tcp", v6, 18088)] if self.docker_does_v6 else []),
            *(("tcp", h, p) for h in (v4, v6) for p in (28080, 28088)),
        ]

    def sees(self, others: Verdict, *opened: Target, **more: list[Target]) -> None:
        """Check that an outsider sees only this open, ssh of the host, and `others` on another port of the host."""
        host = self.fw.host
        expected: dict[Target, Verdict] = dict.fromkeys(self.closed(), "silent")
        expected |= dict.fromkeys([*opened, *(("tcp", h, 22) for h in (host.v4, host.v6))], "open")
        expected |= dict.fromkeys((("tcp", h, 8000) for h in (host.v4, host.v6)), others)
        for verdict, targets in more.items():
            expected |= dict.fromkeys(targets, verdict)
        seen: dict[Target, Verdict] = {}

        def as_expected() -> bool:
            seen.update(self.fw.wan.probe(expected))
            return seen == expected

        try:
            # Docker restores its own rules some time after firewalld's.
            until(as_expected, "an outsider reaches what it should")
        finally:
            assert seen == expected

    def leaves(self, container: str, *addresses: str) -> bool:
        """Return True if the container reaches the Internet."""
        with self.fw.wan.probe.serve(tcp=[8001]):
            seen = self.fw.engine.netns(container).probe([("tcp", address, 8001) for address in addresses])
        return set(seen.values()) == {"open"}

    def host_service(self) -> Verdict:
        """Return what the container on a docker-fw network sees of the host's port 8000, in both families."""
        probe = self.fw.engine.netns(self.ours).probe
        (verdict,) = set(probe([("tcp", h, 8000) for h in (self.fw.host.v4, self.fw.host.v6)]).values())
        return verdict

    def table_handle(self) -> str:
        """Return the handle of docker-fw's table, which changes if the table was removed.

        The rule for its mark must be active, too.
        """
        for tool in ("iptables", *(["ip6tables"] if self.docker_does_v6 else [])):
            until(lambda tool=tool: "docker-fw" in self.rules(tool, "DOCKER-USER"), f"the rule of {tool} is active")
            until(lambda tool=tool: "-j DOCKER-USER" in self.rules(tool, "FORWARD"), f"FORWARD of {tool} leads to it")
        return self.fw.host.run(["nft", "-a", "list", "table", "inet", "docker-fw"]).stdout.partition("\n")[0]

    def rules(self, tool: str, chain: str) -> str:
        return self.fw.host.run([tool, "-S", chain], check=False).stdout


@pytest.fixture(scope="module", params=DEEP)
def fw(request: pytest.FixtureRequest, engines: object) -> Iterator[Fw]:
    """Yield docker-fw on a host that has the firewalls, none of them running. Each test boots it when needed."""
    with Host(engine_root(request.param, extra=FIREWALLS)) as host:
        host.boot()
        engine = Engine(request.param, host=host, data=with_plugin(request.param))
        engine.start()
        yield Fw.install(engine)


@contextmanager
def site(fw: Fw) -> Iterator[Site]:
    subnets = ("--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "2001:db8:77::/64")
    serves = ("sh", "-c", "httpd -p 5432; httpd -p 8080; exec httpd -f -p 80")
    options = ("--restart", "always", "--label", "fw.allow=8080")
    ports = {n: ("-p", f"{n}8080:80", "-p", f"{n}5432:5432", "-p", f"{n}8088:8080") for n in (1, 2)}
    fw.engine.docker("network", "create", *subnets, "theirs")
    try:
        theirs = fw.run("theirs", *options, *ports[1], command=serves)
        with fw.network() as net:
            ours = fw.run(net, *options, *ports[2], command=serves)
            does_v6 = fw.host.run(["ip6tables", "-S", "DOCKER-USER"], check=False).returncode == 0
            yield Site(fw, theirs, ours, fw.engine.address(theirs, "theirs"), tuple(fw.addresses(ours, net)), does_v6)
    finally:
        fw.remove(*fw.engine.docker("ps", "-aq", "--filter", "network=theirs").split())
        fw.engine.docker("network", "rm", "theirs")


def types(host: Host, *commands: str) -> None:
    for command in commands:
        host.run(command.split())


def kept_closed(hammer: Hammer) -> None:
    shots = hammer.stop().shots
    assert len([shot for shot in shots if shot.verdict == "silent"]) > 50
    assert not hammer.result.opened


def test_ufw_protects_the_host_and_docker_fw_the_containers(fw: Fw) -> None:
    """With ufw enabled, closed ports never answer, and all others do.

    ufw is enabled after docker-fw, reloaded, disabled, and active before it at boot. Published ports and docker-fw
    networks need no ufw rule where Docker has its DOCKER-USER; elsewhere (IPv6 before Docker 27) they need two route
    rules. A host port that ufw allows does not open the container's port.
    """
    host = fw.host
    fw.engine.reboot()  # the other test's firewalld runs until then, if that test came first
    types(host, "ufw allow 22/tcp", "ufw allow 18080/tcp", "ufw allow 15432/tcp")
    with site(fw) as at, fw.wan.probe.hammer(*at.closed(), every=0.02) as hammer:
        inside = at.direct() + at.published()
        with host.probe.serve(tcp=[22, 8000]):
            at.sees("open", *inside)
            table = at.table_handle()
            types(host, "ufw --force enable")
            if not at.docker_does_v6:
                at.sees("silent", silent=[*at.direct(at.ours_at[1]), ("tcp", host.v6, 28080)])
                assert not at.leaves(at.ours, fw.wan.FAR_V6)
                types(host, *UFW_ROUTES)
            at.sees("silent", *inside)
            types(host, "ufw reload")
            at.sees("silent", *inside)
            until(lambda: at.leaves(at.ours, fw.wan.FAR_V4, fw.wan.FAR_V6), "our container reaches the Internet")
            until(lambda: at.leaves(at.theirs, fw.wan.FAR_V4), "theirs reaches the Internet")
            assert at.host_service() == "silent"
            assert at.table_handle() == table
            types(host, "ufw disable")
            at.sees("open", *inside)
            assert at.table_handle() == table
        types(host, "ufw --force enable")
        fw.engine.reboot(start=False)
        types(host, "/lib/ufw/ufw-init start")
        fw.engine.start()
        with host.probe.serve(tcp=[22, 8000]):
            at.sees("silent", *inside)
            at.table_handle()
        kept_closed(hammer)


def test_firewalld_protects_the_host_and_docker_fw_the_containers(fw: Fw) -> None:
    """firewalld is active before Docker, reloaded, and restarted: closed ports never answer, published ports do.

    Addresses on docker-fw networks answer, and their containers get out, once firewalld has `fw-+` in a zone that it
    forwards to and from. In the zone `docker` they reach every port of the host, as those on Docker networks do; in a
    zone of their own none. A host port that firewalld opens does not open the container's port.
    """
    host = fw.host
    fw.engine.reboot(start=False)
    types(host, "mkdir -p /run/dbus", "firewall-offline-cmd --add-port=18080/tcp --add-port=15432/tcp")
    host.popen(["dbus-daemon", "--system", "--nofork", "--nopidfile"], stderr=subprocess.DEVNULL)
    until((host.inside / "run/dbus/system_bus_socket").exists, "the system's bus")
    process = firewalld(host)
    fw.engine.start()
    with (
        site(fw) as at,
        fw.wan.probe.hammer(*at.closed(), every=0.02) as hammer,
        host.probe.serve(tcp=[22, 8000]),
    ):
        inside = at.direct() + at.published()
        at.sees("refused", *at.published(), refused=at.direct())
        table = at.table_handle()
        assert not at.leaves(at.ours, fw.wan.FAR_V4)
        dockers = "docker-forwarding" in host.run(["firewall-cmd", "--get-policies"]).stdout
        types(host, *(ZONE_OF_DOCKER if dockers else ZONE_OF_OURS))
        at.sees("refused", *inside)
        types(host, "firewall-cmd --reload")
        at.sees("refused", *inside)
        until(lambda: at.leaves(at.ours, fw.wan.FAR_V4, fw.wan.FAR_V6), "our container reaches the Internet")
        until(lambda: at.leaves(at.theirs, fw.wan.FAR_V4), "theirs reaches the Internet")
        assert at.host_service() == ("open" if dockers else "refused")
        assert at.table_handle() == table
        process.signal(signal.SIGTERM)
        process.wait(30)
        firewalld(host)
        at.sees("refused", *inside)
        assert at.table_handle() == table
        kept_closed(hammer)


def firewalld(host: Host) -> Process:
    process = host.popen(["firewalld", "--nofork", "--nopid"], stderr=subprocess.DEVNULL)
    until(lambda: host.run(["firewall-cmd", "--state"], check=False).returncode == 0, "firewalld runs")
    return process


def test_the_readme_lists_these_commands() -> None:
    """The README lists the commands that these tests run."""
    readme = (ROOT / "README.md").read_text().splitlines()
    assert not {*UFW_ROUTES, *ZONE_OF_DOCKER, *ZONE_OF_OURS} - set(readme)
