"""Check an engine from outside: what an outsider reaches, containers with published ports, and whole promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from plugin.settings import SETTINGS
from tests.lab.netns import FORWARDING
from tests.product import Fw, Net
from tests.waiting import crowded, until

#: A container's servers: one port that its label opens, one that no rule opens.
SERVERS = ("sh", "-c", "httpd -p 9090; exec httpd -f -p 8080")
Targets = list[tuple[str, str, int]]
#: Ports of the host that no other test publishes.
host_ports = itertools.count(21000)


def publish(*ports: int | str) -> tuple[list[str], dict[str, int]]:
    """Return options that publish container ports (`5432`, `53/udp`) on host ports of their own, and these."""
    chosen = {str(port): next(host_ports) for port in ports}
    return [word for port, on in chosen.items() for word in ("-p", f"{on}:{port}")], chosen


def hosts(fw: Fw) -> tuple[str, str]:
    return fw.host.v4, fw.host.v6


def seen(fw: Fw, *targets: tuple[str, str, int]) -> set[tuple[str, str, int]]:
    """Return which of these an outsider reaches."""
    return {target for target, verdict in fw.wan.probe(list(targets)).items() if verdict == "open"}  # type: ignore[misc]


def tcp(addresses: list[str] | tuple[str, ...], *ports: int) -> list[tuple[str, str, int]]:
    return [("tcp", address, port) for address in addresses for port in ports]


def labels(**values: str) -> list[str]:
    return [word for key, value in values.items() for word in ("--label", f"fw.{key.replace('__', '.')}={value}")]


@contextmanager
def dockers(fw: Fw, *options: str, v4: bool = True, v6: bool = True) -> Iterator[Net]:
    with fw.network(*options, v4=v4, v6=v6, driver="bridge") as net:
        yield net


@contextmanager
def setting(fw: Fw, value: str) -> Iterator[None]:
    """Run the plugin with another setting meanwhile."""
    name = value.partition("=")[0]

    def change(to: str) -> None:
        fw.engine.docker("plugin", "disable", "-f", fw.driver)
        fw.engine.docker("plugin", "set", fw.driver, to)
        fw.engine.docker("plugin", "enable", fw.driver)
        until(lambda: fw.status()["listening"], "docker-fw follows Docker", 10)

    change(value)
    try:
        yield
    finally:
        change(f"{name}={SETTINGS[name].default}")


@contextmanager
def labelled(fw: Fw, net: Net, *options: str) -> Iterator[str]:
    """Start a container that restarts by itself, with 8080 opened and 9090 not, both published."""
    app = fw.run(
        net,
        "--restart",
        "always",
        "--stop-timeout",
        "0",
        "--label",
        "fw.allow=8080",
        "-p",
        "18080:8080",
        "-p",
        "19090:9090",
        *options,
        command=SERVERS,
    )
    try:
        yield app
    finally:
        fw.remove(app)


def opened(fw: Fw) -> Targets:
    return [("tcp", host, 18080) for host in hosts(fw)]


def closed(fw: Fw, app: str, net: Net) -> Targets:
    """Return what must never answer: the published port, by DNAT and by docker-proxy, and the container itself."""
    return [("tcp", h, 19090) for h in hosts(fw)] + [("tcp", a, 9090) for a in fw.addresses(app, net)]


def served(fw: Fw) -> None:
    """Wait until the labelled port answers on all of the host's addresses."""
    for target in opened(fw):
        until(partial(lambda t: fw.wan.probe.one(t).verdict == "open", target), f"{target} answers", 40)


def back(fw: Fw, opened: list[tuple[str, str, int]]) -> None:
    """Check that all of these answer within a second: to be called when Docker's API does."""
    until(lambda: set(fw.wan.probe(opened, timeout=0.1).values()) == {"open"}, f"{opened} answer", timeout=1.0)


def opens_just_the_label(fw: Fw) -> None:
    """Check the main promise in short, on an engine that was just set up."""
    with fw.network() as net:
        app = fw.run(net, "--label", "fw.allow=8080")
        with fw.engine.serve(app, tcp=[80, 8080, 9090]):
            for address in fw.addresses(app, net):
                seen = fw.wan.probe([("tcp", address, port) for port in (80, 8080, 9090)])
                assert list(seen.values()) == ["open", "open", "silent"]


def published_ports_obey(each: Fw, where: str) -> None:
    """Check that published ports on a Docker network answer if the policy opens the container's, and else never."""
    options, ports = publish(80, 5432, 8080, "53/udp", "5353/udp")
    naming = ("-o", "com.docker.network.bridge.name=front1") if where == "named" else ()
    with dockers(each, *naming, v6=where in ("dual", "named")) as net:
        name = "bridge" if where == "bridge" else net.name
        plain = each.run(name, *options)
        labels, opened = publish(80, 5432, 8080, "53/udp", "5353/udp")
        label = each.run(name, *labels, "--label", "fw.allow=8080, 53/udp")
        try:
            with (
                each.engine.serve(plain, tcp=[80, 5432, 8080], udp=[53, 5353]),
                each.engine.serve(label, tcp=[80, 5432, 8080], udp=[53, 5353]),
            ):
                tried = {
                    (host, container, port): ("udp" if port.endswith("/udp") else "tcp", host, on)
                    for host in hosts(each)
                    for container, chosen in ((plain, ports), (label, opened))
                    for port, on in chosen.items()
                }
                right = {
                    target
                    for (_, container, port), target in tried.items()
                    if port == "80" or (container == label and port in ("8080", "53/udp"))
                }
                until(lambda: seen(each, *tried.values()) == right, "exactly the permitted ports answer", 5)
                assert seen(each, *tried.values()) == right
                verdicts = each.host.probe(list(tried.values()), timeout=crowded())
                assert {target: verdict for target, verdict in verdicts.items() if verdict != "open"} == {}
                for address in filter(None, each.engine.address(plain, name)):
                    assert each.host.probe.tcp(address, 5432) == "open"
        finally:
            each.remove(plain, label)


def survives(fw: Fw, disturb: Callable[[str], None], *, v6: bool = True) -> None:
    """End in the initial state; closed ports never answered meanwhile."""
    fw.host.netns.sysctl(FORWARDING)
    with dockers(fw, v6=v6) as net, labelled(fw, net) as app:
        served(fw)
        with fw.wan.probe.hammer(*closed(fw, app, net), every=0.004) as hammer:
            disturb(app)
            served(fw)
        assert len([shot for shot in hammer.result.shots if shot.verdict == "silent"]) > 50
        assert not hammer.result.opened
