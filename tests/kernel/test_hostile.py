"""Root in a container, with every capability over its own network, against its neighbours on a network of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from plugin.links import host_side
from tests.kernel.netns import inside
from tests.kernel.packets import Packet, Sniffer, arrived, new_flow
from tests.kernel.site import Box, Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


@pytest.fixture(scope="module")
def boxes(site: Site) -> list[Box]:
    """Three containers of one network: a victim, its neighbour, a hostile one."""
    network = site.network(1)
    made = [site.box(network, number) for number in (2, 3, 4)]
    site.acquaint(*made)
    return made


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(box: Box, source: str, target: str, packet: Packet) -> None:
    """Sends a packet in a frame whose source may be a lie."""
    kind = b"\x86\xdd" if len(packet.dst) == 16 else b"\x08\x00"
    with inside(box.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(mac(target) + mac(source) + kind + bytes(packet))


def fdb(site: Site) -> list[str]:
    return site.run("bridge", "fdb", "show", "br", site.networks[next(iter(site.networks))].bridge).stdout.splitlines()


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_no_frame_leaves_from_another_mac(site: Site, boxes: list[Box], family: str) -> None:
    """Neither from a neighbour's MAC nor from an invented one; from its own, frames pass."""
    victim, neighbour, hostile = boxes
    src, dst = str(getattr(hostile, family)), str(getattr(victim, family))
    sniffer = site.sniffer(victim)
    forged, invented, true = (new_flow("udp", src, dst, 9, sport) for sport in (4001, 4002, 4003))
    frame(hostile, neighbour.endpoint.mac, victim.endpoint.mac, forged)
    frame(hostile, "02:42:ff:ff:ff:01", victim.endpoint.mac, invented)
    frame(hostile, hostile.endpoint.mac, victim.endpoint.mac, true)
    (seen,) = arrived([sniffer], true)
    assert forged not in seen
    assert invented not in seen


def test_a_neighbours_frames_are_not_drawn_away(site: Site, boxes: list[Box]) -> None:
    """Who speaks from the victim's MAC does not get what is sent to it: the bridge learns nothing from containers."""
    victim, neighbour, hostile = boxes
    frame(hostile, victim.endpoint.mac, neighbour.endpoint.mac, new_flow("udp", "10.1.0.4", "10.1.0.3", 9, 4101))
    sniffers = [site.sniffer(victim), site.sniffer(hostile)]
    packet = new_flow("udp", "10.1.0.3", "10.1.0.2", 9, 4102)
    site.send([packet], neighbour)
    assert packet in arrived(sniffers[:1], packet)[0]
    assert packet not in set(sniffers[1].read())


def test_the_bridges_table_cannot_be_filled(site: Site, boxes: list[Box]) -> None:
    """A hundred invented MACs leave no entry, and frames to a MAC that nobody has are seen by no container."""
    victim, neighbour, hostile = boxes
    before = sorted(fdb(site))
    for number in range(100):
        lie = f"02:aa:00:00:00:{number:02x}"
        frame(hostile, lie, victim.endpoint.mac, new_flow("udp", "10.1.0.4", "10.1.0.2", 9, 4201))
    assert sorted(fdb(site)) == before
    sniffer: Sniffer = site.sniffer(hostile)
    lost, last = (new_flow("udp", "10.1.0.3", "10.1.0.4", 9, sport) for sport in (4202, 4203))
    frame(neighbour, neighbour.endpoint.mac, "02:aa:ff:ff:ff:ff", lost)
    frame(neighbour, neighbour.endpoint.mac, hostile.endpoint.mac, last)
    assert lost not in arrived([sniffer], last)[0]


def test_a_bridge_made_again_binds_its_ports_again(site: Site) -> None:
    """Ports that outlived their bridge belong to their MAC alone, as before."""
    network = site.network(2)
    box = site.box(network, 2)
    port = host_side(box.endpoint.id)
    site.run("ip", "link", "del", network.bridge)
    with site.inside():
        site.links.make_bridge(network)
        site.links.reattach(network, [box.endpoint])
    shown = site.run("bridge", "-d", "link", "show", "dev", port).stdout
    assert "learning off" in shown
    assert " flood off" in shown
    assert "locked on" in shown
    assert f"{box.endpoint.mac} dev {port} master {network.bridge} static" in site.run("bridge", "fdb").stdout
