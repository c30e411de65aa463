"""Test hosts unlike the lab's others: the old iptables, an uplink that depends on router advertisements."""

from __future__ import annotations

from tests.engine.outside import opens_just_the_label
from tests.lab import Engine, Host, engine_root
from tests.product import NEWEST, Fw, with_plugin
from tests.waiting import until


def test_a_host_whose_docker_speaks_iptables_legacy(engines: object) -> None:
    """Where dockerd uses iptables-legacy its FORWARD drop is overridden there.

    No rule is added to the other variant.
    """
    with Host(engine_root(NEWEST)) as host:
        host.boot()
        for tool in ("iptables", "ip6tables"):
            host.run(["update-alternatives", "--set", tool, f"/usr/sbin/{tool}-legacy"])
        with Engine(NEWEST, host=host, data=with_plugin(NEWEST)) as engine:
            assert "-P FORWARD DROP" in host.run(["iptables-legacy", "-S", "FORWARD"]).stdout
            fw = Fw.install(engine)
            opens_just_the_label(fw)
            for tool in ("iptables", "ip6tables"):
                assert "docker-fw" in host.run([f"{tool}-legacy", "-S", "DOCKER-USER"]).stdout
                assert "docker-fw" not in host.run([f"{tool}-nft-save"], check=False).stdout


def test_a_host_that_lives_on_router_advertisements(engines: object) -> None:
    """A network that needs IPv6 forwarding does not cost the host its default route, now or at the next advertisement.

    The engine leaves IPv6 forwarding to others.
    """
    host = Host(engine_root("20.10.24"), advertised=True)
    with host, Engine("20.10.24", host=host, data=with_plugin("20.10.24")) as engine:
        assert host.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout == "0\n"
        fw = Fw.install(engine)
        with fw.network() as net:
            assert host.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout == "1\n"
            assert host.probe.ping(host.wan.FAR_V6) == "open"
            host.run(["ip", "-6", "route", "flush", "proto", "ra"])
            host.wan.advertise()
            until(lambda: host.probe.ping(host.wan.FAR_V6) == "open", "the host hears its router")
            app = fw.run(net)
            with engine.serve(app, tcp=[80, 8080]):
                v6 = fw.addresses(app, net)[1]
                assert list(fw.wan.probe([("tcp", v6, 80), ("tcp", v6, 8080)]).values()) == ["open", "silent"]
                assert engine.netns(app).probe.ping(host.wan.FAR_V6) == "open"
