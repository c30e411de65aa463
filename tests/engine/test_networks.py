"""Test networks in all their forms: options as for Docker's bridge driver, families, internal, refusals."""

from __future__ import annotations

import json

import pytest

from plugin.kernel.links import bridge_mac
from tests.lab import DockerError
from tests.product import Fw
from tests.waiting import until


def test_an_ipv6_only_network_has_no_ipv4_at_all(fw: Fw) -> None:
    """`--ipv4=false` (Docker ≥ 28): the container has IPv6 alone, answers on it, and publishes on it."""
    with fw.network("--ipv4=false", v4=False) as net:
        app = fw.run(net, "-p", "18300:80", "--label", "fw.allow=8080")
        (v6,) = fw.addresses(app, net)
        with fw.engine.serve(app, tcp=[80, 8080, 9090]):
            seen = fw.wan.probe([("tcp", v6, p) for p in (80, 8080, 9090)] + [("tcp", fw.host.v6, 18300)])
            assert list(seen.values()) == ["open", "open", "silent", "open"]
            assert fw.host.probe.tcp("127.0.0.1", 18300) == "open"
        assert fw.engine.netns(app).probe.ping(fw.wan.FAR_V6) == "open"


def test_an_ipv4_only_network_serves_ipv4(fw: Fw) -> None:
    """Without --ipv6 the container has IPv4 alone, behind the same policy."""
    with fw.network(v6=False) as net:
        app = fw.run(net, "--label", "fw.allow=8080")
        (v4,) = fw.addresses(app, net)
        with fw.engine.serve(app, tcp=[80, 8080, 9090]):
            seen = fw.wan.probe([("tcp", v4, p) for p in (80, 8080, 9090)])
            assert list(seen.values()) == ["open", "open", "silent"]


def test_no_packet_enters_or_leaves_an_internal_network(deep: Fw) -> None:
    """`--internal`: its containers reach one another and the host, and nothing else; a label changes nothing."""
    with deep.network("--internal") as net, deep.network() as other:
        app, mate, stranger = deep.run(net, "--label", "fw.allow=8080"), deep.run(net), deep.run(other)
        v4, v6 = deep.addresses(app, net)
        with deep.engine.serve(app, tcp=[80, 8080]):
            outside = [("tcp", a, p) for a in (v4, v6) for p in (80, 8080)] + [("ping", v4), ("ping", v6)]
            assert set(deep.wan.probe(outside).values()) == {"silent"}
            assert set(deep.engine.netns(stranger).probe(outside).values()) == {"silent"}
            assert set(deep.engine.netns(mate).probe(outside).values()) == {"open"}
            assert set(deep.host.probe(outside).values()) == {"open"}
        out = deep.engine.netns(app).probe([("ping", deep.wan.FAR_V4), ("ping", deep.wan.FAR_V6)])
        assert "open" not in out.values()


def test_addresses_mac_mtu_and_names_are_as_chosen(fw: Fw) -> None:
    """--gateway, --ip, --ip6, --mac-address, MTU, bridge name and interface prefix work as they do for Docker."""
    bridge = "com.docker.network.bridge.name=custom0"
    driver = "-o com.docker.network.driver.mtu=1400 -o com.docker.network.container_iface_prefix=lan"
    v4 = "--subnet 10.97.0.0/24 --gateway 10.97.0.77"
    v6 = "--ipv6 --subnet 2001:db8:97::/64 --gateway 2001:db8:97::77"
    with fw.network(*f"{v4} {v6} -o {bridge} {driver}".split(), v4=False, v6=False) as net:
        app = fw.run(net, "--ip", "10.97.0.9", "--ip6", "2001:db8:97::9", "--mac-address", "02:11:22:33:44:55")
        with fw.engine.serve(app, tcp=[80, 8080]):
            seen = fw.wan.probe([("tcp", a, p) for a in ("10.97.0.9", "2001:db8:97::9") for p in (80, 8080)])
            assert list(seen.values()) == ["open", "silent", "open", "silent"]
        link = fw.engine.docker("exec", app, "ip", "addr", "show", "lan0")
        assert "mtu 1400" in link
        assert "02:11:22:33:44:55" in link
        assert "default via 10.97.0.77" in fw.engine.docker("exec", app, "ip", "route")
        assert "10.97.0.77/24" in fw.host.run(["ip", "addr", "show", "custom0"]).stdout
        assert fw.engine.netns(app).probe.ping(fw.wan.FAR_V6) == "open"


def test_the_first_packet_to_a_container_waits_for_no_answer(deep: Fw) -> None:
    """The host knows a container's MAC for its addresses as long as it runs, and for no address without a container.

    So an address that outsiders tried before it existed answers as soon as its program listens.
    """

    def known() -> set[str]:
        listed = deep.host.run(["ip", "neigh", "show", "nud", "permanent"]).stdout
        return {line.split()[0] for line in listed.splitlines()}

    with deep.network() as net:
        app = deep.run(net)
        addresses = {*deep.addresses(app, net)}
        assert addresses <= known()
        deep.engine.docker("restart", "-t", "0", app)
        assert addresses <= known()
        deep.engine.docker("network", "disconnect", net.name, app)
        assert not addresses & known()
        deep.engine.docker("network", "connect", net.name, app)
        assert {*deep.addresses(app, net)} <= known()
        deep.remove(app)
        assert not addresses & known()


def test_a_mac_address_is_one_containers_on_its_network(deep: Fw) -> None:
    """For a `--mac-address` of a neighbour, or of the bridge itself, Docker prints the reason.

    The neighbour is unaffected. On another network, and once the neighbour is removed, the container starts with it.
    """
    mac = "02:aa:00:00:00:07"
    with deep.network() as net, deep.network() as other:
        app = deep.run(net, "--mac-address", mac)
        for chosen in (mac, mac.upper()):
            error = deep.refuse(net, "--mac-address", chosen)
            assert f"MAC address {mac} belongs to container {app}" in error
        bridge = bridge_mac(deep.engine.docker("network", "inspect", "-f", "{{.Id}}", net.name).strip())
        assert "belongs to the network's bridge" in deep.refuse(net, "--mac-address", bridge)
        deep.run(other, "--mac-address", mac)
        with deep.engine.serve(app, tcp=[80]):
            assert deep.wan.probe.tcp(deep.addresses(app, net)[1], 80) == "open"
        deep.remove(app)
        deep.run(net, "--mac-address", mac)


def test_network_and_attachment_options_open_ports(fw: Fw) -> None:
    """`-o fw.allow` opens for all containers of a network; `driver-opt` for one attachment."""
    with fw.network("-o", "fw.allow=7000") as net:
        app = fw.run(net)
        other = f"{app}x"
        options = f"--name {other} --network name={net.name},driver-opt=fw.allow=7001"
        fw.engine.docker(*f"run -d {options} busybox sleep inf".split())
        with fw.engine.serve(app, tcp=[7000, 7001]), fw.engine.serve(other, tcp=[7000, 7001]):
            for container, verdicts in ((app, ["open", "silent"]), (other, ["open", "open"])):
                for address in fw.addresses(container, net):
                    seen = fw.wan.probe([("tcp", address, 7000), ("tcp", address, 7001)])
                    assert list(seen.values()) == verdicts


COMPOSE = """
services:
  app:
    image: busybox
    command: sleep inf
    networks:
      front:
        driver_opts: {fw.allow: "7002, 53/udp"}
networks:
  front: {name: front, external: true}
"""


def test_a_compose_services_attachment_opens_ports(fw: Fw) -> None:
    """`networks.NAME.driver_opts` of a compose service opens ports of that attachment (Docker Compose ≥ 2.40)."""
    with fw.network() as net:
        fw.host.write("/lab/attachment.yml", COMPOSE.replace("name: front", f"name: {net.name}"))
        compose = ("compose", "-f", "/lab/attachment.yml", "-p", "attachment")
        fw.engine.docker(*compose, "up", "-d", timeout=60)
        with fw.engine.serve("attachment-app-1", tcp=[80, 7002, 7003], udp=[53]):
            for address in fw.addresses("attachment-app-1", net):
                seen = fw.wan.probe([*(("tcp", address, port) for port in (80, 7002, 7003)), ("udp", address, 53)])
                assert list(seen.values()) == ["open", "open", "silent", "open"]
        fw.engine.docker(*compose, "down", "-t", "0", timeout=60)


def test_a_setting_opens_a_port_of_every_container(fw: Fw) -> None:
    """`docker plugin set fw:latest FW_ALLOW=…` while the plugin is disabled, as in the README, and back."""
    try:
        with fw.network() as net:
            app = fw.run(net)
            configure(fw, "FW_ALLOW=9100")
            with fw.engine.serve(app, tcp=[80, 9100, 9101]):
                for address in fw.addresses(app, net):
                    until(lambda a=address: fw.wan.probe.tcp(a, 9100) == "open", "the setting counts")
                    assert list(fw.wan.probe([("tcp", address, p) for p in (80, 9101)]).values()) == ["open", "silent"]
    finally:
        configure(fw, "FW_ALLOW=")


def configure(fw: Fw, setting: str) -> None:
    """Change a setting as the README describes."""
    fw.engine.docker("plugin", "disable", "-f", fw.driver)
    fw.engine.docker("plugin", "set", fw.driver, setting)
    fw.engine.docker("plugin", "enable", fw.driver)


def test_a_label_of_the_image_opens_nothing(deep: Fw) -> None:
    """An image must not open its own ports: a label equal to the image's own is ignored, wrong or right."""
    done = deep.engine.host.run(
        ["docker", "build", "-q", "-t", "selfish", "-"],
        input='FROM busybox\nLABEL fw.allow="8080" fw.alow="nonsense"\n',
    )
    assert done.returncode == 0
    with deep.network() as net:
        app = deep.run(net, image="selfish")
        asked = deep.run(net, "--label", "fw.allow=8081", image="selfish")
        with deep.engine.serve(app, tcp=[80, 8080]), deep.engine.serve(asked, tcp=[8080, 8081]):
            v6 = deep.addresses(app, net)[1]
            assert list(deep.wan.probe([("tcp", v6, 80), ("tcp", v6, 8080)]).values()) == ["open", "silent"]
            v6 = deep.addresses(asked, net)[1]
            assert list(deep.wan.probe([("tcp", v6, 8080), ("tcp", v6, 8081)]).values()) == ["silent", "open"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "fw.allow=http"), '"http" is not a port'),
        (("-o", "fw.alow=80"), "did you mean fw.allow?"),
        (("-o", "com.docker.network.bridge.name=eth0"), "bridge name eth0 is taken"),
        (("-o", "com.docker.network.bridge.name=a/b"), "at most 15 letters"),
        (("-o", "com.docker.network.driver.mtu=huge"), "must be a number of bytes"),
        (("-o", "com.docker.network.bridge.gateway_mode_ipv6=nat"), "IPv6 is always routed"),
        (("-o", "com.docker.network.bridge.enable_icc=false"), "talk freely"),
        (("--subnet", "198.51.100.0/24"), "overlaps"),
    ],
)
def test_a_wrong_network_option_is_refused_with_a_message_and_nothing_stays(
    fw: Fw, options: tuple[str, ...], message: str
) -> None:
    """`docker network create` fails with the option, its value and the correct form; no link, no network is left."""
    before = fw.host.run(["ip", "-o", "link"]).stdout
    with pytest.raises(DockerError) as error, fw.network(*options, v4="--subnet" not in options, v6=False):
        pass
    assert message in str(error.value)
    assert [line.split(":")[1] for line in before.splitlines()] == [
        line.split(":")[1] for line in fw.host.run(["ip", "-o", "link"]).stdout.splitlines()
    ]
    assert fw.status()["networks"] == []


def test_an_overlapping_subnet_is_refused_and_the_first_network_is_unaffected(fw: Fw) -> None:
    """Two networks never share addresses, because one's exception would be the other's."""
    with fw.network() as net:
        app = fw.run(net)
        with pytest.raises(DockerError), fw.network("--subnet", net.v4, v4=False, v6=False):
            pass
        with fw.engine.serve(app, tcp=[80]):
            assert fw.wan.probe.tcp(fw.addresses(app, net)[1], 80) == "open"


def test_published_ports_in_ranges_on_addresses_and_chosen_by_us(fw: Fw) -> None:
    """Host port ranges, one host address, loopback only, a port that docker-fw picks; `fwctl ports` shows them."""
    with fw.network() as net:
        app = fw.run(
            net,
            "-p",
            "18400-18402:8000-8002",
            "-p",
            f"{fw.host.v4}:18410:80",
            "-p",
            "127.0.0.1:18411:80",
            "-p",
            "80",
            "-p",
            "18420-18429:443",
            "--label",
            "fw.allow=8000-8002",
        )
        second = fw.run(net, "-p", "18420-18429:443")
        rows = fw.status()["networks"][0]["endpoints"]
        published = {p["host_port"] for row in rows if row["container"] == app for p in row["published"]}
        others = {p["host_port"] for row in rows if row["container"] == second for p in row["published"]}
        picked = published - {*range(18400, 18403), 18410, 18411, 18420}
        assert len(picked) == 1
        assert others == {18421}
        with fw.engine.serve(app, tcp=[80, 443, *range(8000, 8003)]):
            v4, v6 = fw.host.v4, fw.host.v6
            opened = [("tcp", a, p) for a in (v4, v6) for p in (*range(18400, 18403), 18420, *picked)]
            assert set(fw.wan.probe([*opened, ("tcp", v4, 18410)]).values()) == {"open"}
            assert "open" not in fw.wan.probe([("tcp", v6, 18410), ("tcp", v4, 18411), ("tcp", v6, 18411)]).values()
            assert fw.host.probe.tcp("127.0.0.1", 18411) == "open"
        shown = fw.fwctl("ports")
        assert "0.0.0.0:18420->443/tcp" in shown
        rows = json.loads(fw.fwctl("ports", "--json"))
        assert {row["host_port"] for row in rows if row["container"] == second} == {18421}


def test_sctp_is_published_too(fw: Fw) -> None:
    """`-p 17:7/sctp` leads to the container's port where a label opens it."""
    with fw.network() as net:
        app = fw.run(net, "-p", "17007:7/sctp", "--label", "fw.allow=7/sctp")
        with fw.engine.serve(app, sctp=[7]):
            assert fw.wan.probe.sctp(fw.host.v4, 17007) == "open"
            assert fw.wan.probe.sctp(fw.addresses(app, net)[1], 7) == "open"


def test_ports_go_with_the_network_that_is_the_containers_way_out(fw: Fw) -> None:
    """A container on two networks publishes on one of them; when that one is disconnected, on the other."""
    with fw.network() as one, fw.network() as two:
        app = fw.run(one, "-p", "18500:80")
        fw.engine.docker("network", "connect", two.name, app)
        with fw.engine.serve(app, tcp=[80]):
            assert fw.wan.probe.tcp(fw.host.v4, 18500) == "open"
            fw.engine.docker("network", "disconnect", one.name, app)
            assert fw.wan.probe.tcp(fw.host.v4, 18500) == "open"
            assert fw.wan.probe.tcp(fw.host.v6, 18500) == "open"
            assert fw.engine.netns(app).probe.ping(fw.wan.FAR_V4) == "open"


def test_ports_of_a_container_on_an_ipv4_and_an_ipv6_network(fw: Fw) -> None:
    """A container with IPv4 from one network and IPv6 from another publishes in both families."""
    with fw.network(v6=False) as four, fw.network("--ipv4=false", v4=False) as six:
        app = fw.run(four, "--network", six.name, "-p", "18700:80")
        with fw.engine.serve(app, tcp=[80]):
            assert fw.wan.probe.tcp(fw.host.v4, 18700) == "open"
            assert fw.wan.probe.tcp(fw.host.v6, 18700) == "open"
            assert fw.host.probe.tcp("127.0.0.1", 18700) == "open"
            assert fw.host.probe.tcp("::1", 18700) == "open"


def test_an_address_outside_the_subnet_is_refused(fw: Fw) -> None:
    """Docker's check or docker-fw's: a container never gets an address outside its network."""
    with fw.network() as net:
        assert fw.refuse(net, "--ip", "198.51.100.77")


def test_containers_on_the_hosts_own_link_are_answered_for(fw: Fw) -> None:
    """Where the host has no routed prefix but one /64 on its link, containers in a part of it are reachable too."""
    with fw.network("--ipv6", "--subnet", "2001:db8:ffff:0:77::/80", v6=False) as net:
        app = fw.run(net, "--label", "fw.allow=8080")
        v6 = fw.addresses(app, net)[1]
        assert v6.startswith("2001:db8:ffff:0:77:")
        with fw.engine.serve(app, tcp=[80, 8080, 9090]):
            until(lambda: fw.wan.probe.tcp(v6, 80) == "open", "the neighbour is answered", timeout=2)
            seen = fw.wan.probe([("tcp", v6, 8080), ("tcp", v6, 9090)])
            assert list(seen.values()) == ["open", "silent"]
        fw.remove(app)
        until(lambda: v6 not in fw.host.run(["ip", "-6", "neigh", "show", "proxy"]).stdout, "the answer is gone")
