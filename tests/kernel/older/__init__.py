"""What older versions left: a state file and a table each, and the host that they left them on.

    python -m tests.kernel.older /tmp/checkout-of-a-version NAME

runs that checkout's plugin on a host of the kernel tier and keeps under NAME what it leaves. So a version that changes
the state file or the table brings the one before it along.
"""

from __future__ import annotations

from pathlib import Path

from plugin.kernel.names import container_side, host_side
from plugin.model import Endpoint, Network
from plugin.state.store import Store
from tests.kernel.running import Running
from tests.kernel.site import Box
from tests.lab import NamedNetns

HERE = Path(__file__).parent
NAMES = sorted(path.name for path in HERE.iterdir() if (path / "table.nft").exists())
#: A boot ID in the files, which are of no host in particular.
BOOT = "00000000-0000-0000-0000-000000000000"
#: Docker's own network: its ID, its bridge, its container's endpoint.
DOCKERS, BRIDGE, GUEST = "d" * 64, "br-" + "d" * 12, "e" * 64
LABELS = {"fw.allow": "8080"}
#: The driver's containers as they came: c4 has gone while nobody ran, c2 is in the state file's log alone.
ORDER = (4, 3, 2)
#: What versions with fwctl's own words have besides: this ban, and of c3 port 7000 opened, 443 closed.
BANNED = "203.0.113.7"


def docker_knows(fw: Running, *numbers: int) -> None:
    """Docker's own network with a container of Docker's, and containers of the driver's network."""
    fw.docker.networks[DOCKERS] = {
        "Id": DOCKERS, "Name": "app", "Driver": "bridge", "Containers": {}, "Options": {},
        "IPAM": {"Config": [{"Subnet": "10.100.0.0/24"}, {"Subnet": "2001:db8:100::/64"}]},
    }  # fmt: skip
    fw.docker.container("guest", GUEST, DOCKERS, LABELS)
    place = fw.docker.containers[GUEST]["NetworkSettings"]["Networks"]["net"]
    place |= {"IPAddress": "10.100.0.2", "GlobalIPv6Address": "2001:db8:100::2"}
    for number in numbers:
        endpoint = fw.endpoint(fw.network(1), number)
        fw.docker.container(f"c{number}", endpoint["EndpointID"], endpoint["NetworkID"], labels(number))


def labels(number: int) -> dict[str, str]:
    """c2 and c4 open 8080, c3 nothing."""
    return {} if number == 3 else LABELS


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stand(fw: Running, name: str) -> tuple[NamedNetns, NamedNetns, Box]:
    """The host as that version left it, with nobody running, and the containers that are there: c2, c3, the guest."""
    fw.state.parent.mkdir()
    for path in (HERE / name).glob("state.json*"):
        (fw.state.parent / path.name).write_text(path.read_text().replace(BOOT, boot_id()))
    fw.site.run("nft", "-f", str(HERE / name / "table.nft"))
    docker_knows(fw, *ORDER)
    del fw.docker.containers[fw.endpoint(fw.network(1), 4)["EndpointID"]]
    kept = Store(str(fw.state)).load()
    (network,) = kept.networks.values()
    with fw.site.inside():
        fw.site.links.make_bridge(network)
    c2, c3 = (_container(fw, network, kept.endpoints[fw.endpoint(fw.network(1), n)["EndpointID"]]) for n in (2, 3))
    return c2, c3, fw.site.docker_box(BRIDGE, 100)


def _container(fw: Running, network: Network, endpoint: Endpoint) -> NamedNetns:
    """A container whose port the older version had put on the bridge, and no more."""
    outer, inner = host_side(endpoint.id), container_side(endpoint.id)
    fw.site.host.ip(
        f"link add {outer} type veth peer name {inner} address {endpoint.mac}",
        f"link set {outer} master {network.bridge} up",
    )
    assert network.gateway4
    assert network.gateway6
    return fw.site.settle(
        inner,
        network.bridge,
        (f"{endpoint.addr4}/24", f"{endpoint.addr6}/64"),
        (str(network.gateway4.ip), str(network.gateway6.ip)),
    )
