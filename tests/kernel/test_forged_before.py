"""Test flows with a container's address as source that an outsider forges before the container's network exists.

Where the host forwards between its outside links, such a flow would count as one that the container opened: each reply
to it would reach the container, on a port that nothing opens.
"""

from __future__ import annotations

import os
import signal

import pytest

from plugin.fwctl.host import boot_table
from tests.kernel.older import boot_id
from tests.kernel.packets import Packet, ping, udp
from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER, MARK, Box
from tests.kernel.talks import Talks
from tests.lab import Wan
from tests.waiting import until

#: An address that the outsider can receive at, and send from.
FAR4, FAR6 = "203.0.113.99", "2001:db8:5::99"
DOCKERS = "d" * 64


def forged(number: int) -> tuple[list[Packet], list[Packet]]:
    """Return the first packets of such flows from the container .2 of a network, and the replies to them."""
    pairs = ((f"10.{number}.0.2", FAR4), (f"2001:db8:{number}::2", FAR6))
    return [udp(a, far, 4000, 53) for a, far in pairs], [udp(far, a, 53, 4000) for a, far in pairs]


def docker_network(fw: Running) -> Box:
    """Let Docker create a network with a container that answers on its base ports."""
    fw.docker.bridge_network(DOCKERS, "app", "10.100.0.0/24", "2001:db8:100::/64")
    box = fw.site.docker_box(f"br-{DOCKERS[:12]}", 100)
    fw.docker.container("guest", "e" * 64, DOCKERS, {})
    place = fw.docker.containers["e" * 64]["NetworkSettings"]["Networks"]["net"]
    place |= {"IPAddress": "10.100.0.2", "GlobalIPv6Address": "2001:db8:100::2"}
    fw.docker.event("network", "create")  # list everything: the list after the bridge's report may be an earlier one
    probe = fw.site.wan.probe
    until(lambda: probe.tcp("10.100.0.2", 80, source=Wan.FAR_V4) == "refused", "docker-fw knows the container", 30)
    return box


def driver_network(fw: Running) -> Box:
    network = fw.network(77)
    fw.well("CreateNetwork", network)
    return fw.move(fw.start_container(network, 2))


def opened(fw: Running, number: int) -> list[Packet]:
    """Let the outsider open such flows; return the replies to them."""
    site = fw.site
    site.wan.ip(
        f"route add {FAR4} via {site.HOST4}",
        f"route add {FAR6} via {site.HOST6}",
        f"route add 10.{number}.0.0/24 via {site.HOST4}",
    )
    first, replies = forged(number)
    site.send([*first, *replies])
    assert site.run("conntrack", "-L", check=False).stdout.count("sport=53 dport=4000") == 2
    return replies


def opened_without_a_table(fw: Running, number: int) -> list[Packet]:
    """Let the outsider open such flows while docker-fw's table is missing; another program's tracks connections."""
    rules = "type filter hook forward priority 0; ct state established accept;"
    fw.site.run("nft", "-f", "-", input=f"table inet other {{ chain try {{ {rules} }}; }}\n")
    return opened(fw, number)


@pytest.mark.parametrize("kind", ["Docker network", "docker-fw network"])
def test_a_flow_forged_before_a_network_exists_does_not_reach_its_containers(own: Running, kind: str) -> None:
    """Some tenths of a second after the network appears; then nothing that the outsider sends opens it again.

    Nor does a flow reach them that begins between network and container.
    """
    number = 100 if kind == "Docker network" else 77
    own.start()
    replies = opened(own, number)
    box = docker_network(own) if kind == "Docker network" else driver_network(own)
    until(lambda: not own.site.deliver(replies, box), "the flows are cut", 5)
    own.site.send([*forged(number)[0], *replies])
    assert own.site.deliver(replies, box) == set()


@pytest.mark.parametrize("moment", ["stopped", "stuck"])
def test_a_docker_network_that_appears_while_no_docker_fw_runs(own: Running, moment: str) -> None:
    """The table alone refuses the flows, from the network's first moment on, and no start lets them pass again."""
    site = own.site
    own.start()
    if moment == "stopped":
        own.stop()
    else:
        os.kill(own.worker(), signal.SIGSTOP)
    replies = opened(own, 100)
    box = site.docker_box(f"br-{DOCKERS[:12]}", 100)
    assert site.deliver(replies, box) == set()
    if moment == "stopped":
        own.start()
    else:
        own.kill_worker()
    assert site.deliver(replies, box) == set()


def test_a_flow_forged_to_or_from_the_hosts_own_address(own: Running) -> None:
    """Linux refuses the host's own source from outside over IPv4 alone, and such flows are not cut."""
    site = own.site
    own.start()
    ours, there = str(site.HOST6), "2001:db8:100::2"
    first = [udp(there, ours, 4001, 53), udp(ours, there, 54, 4002)]
    later = [udp(ours, there, 53, 4001), udp(ours, there, 54, 4002)]
    site.send([first[0], first[1], udp(there, ours, 4002, 54)])
    box = docker_network(own)
    assert site.deliver(later, box, last=ping(FAR6, there)) == set()


def test_a_subnet_to_which_the_host_has_only_a_route(own: Running) -> None:
    """The bridge has no address, as with Docker's option inhibit_ipv4, so no report names the subnet."""
    site = own.site
    own.start()
    replies = opened(own, 100)
    box = site.docker_box(f"br-{DOCKERS[:12]}", 101)
    site.host.ip(f"route add 10.100.0.0/24 dev br-{DOCKERS[:12]}", f"route add 2001:db8:100::/64 dev br-{DOCKERS[:12]}")
    site.resolve(f"br-{DOCKERS[:12]}", box, "10.100.0.2", "2001:db8:100::2")
    own.docker.event("network", "create")
    last = ping(FAR6, str(box.v6))
    until(lambda: not site.deliver(replies, box, last=last), "the flows are cut", 5)


def test_a_bridge_that_becomes_dockers(own: Running) -> None:
    """Docker can make a network of an existing bridge: flows forged while it was unmanaged reach no container."""
    site, bridge = own.site, "lan7"
    own.docker.networks["b" * 64] = {"Id": "b" * 64, "Name": "other", "Driver": "null"}
    own.start()
    box = site.docker_box(bridge, 100)
    until(lambda: bridge in own.status()["foreign"], "the bridge is left alone", 15)
    replies = opened(own, 100)
    assert site.deliver(replies, box) == set(replies)
    own.docker.bridge_network(DOCKERS, "app", "10.100.0.0/24", "2001:db8:100::/64", bridge=bridge)
    own.docker.event("network", "create")
    until(lambda: not site.deliver(replies, box), "the flows are refused", 5)


def test_a_network_that_is_created_while_docker_fw_is_stopped(own: Running) -> None:
    """A start cuts the flows of such networks, and none of those that were protected before."""
    site = own.site
    former = site.docker_box(BR_DOCKER, 101)
    replies = opened_without_a_table(own, 100)
    own.start()
    with Talks() as talks:
        talks.open("out", "tcp", former, site.wan, Wan.FAR_V4, 9)
        own.stop()
        box = site.docker_box(f"br-{DOCKERS[:12]}", 100)
        assert site.deliver(replies, box) == set(replies)
        own.start()
        until(lambda: not site.deliver(replies, box), "the flows are cut")
        assert talks.going("out") == {"out"}


def test_a_network_that_docker_makes_at_a_boot_before_the_sidecar_starts(own: Running) -> None:
    """The boot table names Docker's bridges before they have a subnet, so the start cuts flows from before that."""
    site, bridge = own.site, f"br-{DOCKERS[:12]}"
    own.start()
    own.stop()
    for path in own.state.parent.glob(f"{own.state.name}*"):
        path.write_text(path.read_text().replace(boot_id(), "an-earlier-boot"))
    site.run("nft", "flush", "ruleset")
    replies = opened_without_a_table(own, 100)
    site.run("nft", "-f", "-", input=boot_table.nft_text(MARK, (bridge,), ()))
    box = site.docker_box(bridge, 100)
    assert site.deliver(replies, box) == set(replies)
    own.start()
    until(lambda: not site.deliver(replies, box), "the flows are cut")
    site.send([*forged(100)[0], *replies])
    assert site.deliver(replies, box) == set()
