"""Test the examples that people copy: the compose stack and the README's first commands."""

from __future__ import annotations

import re

from tests.demo import down, probes, ready, unchanged, up
from tests.product import IMAGE, ROOT, Fw
from tests.waiting import until


def test_the_compose_example_answers_as_it_says(fw: Fw) -> None:
    """compose-examples/shop.yml: the insecure app is closed, the proxy answers for it, one label opens one port."""
    up(fw, "shop.yml")
    try:
        ready(fw)
        wrong = [line for line in probes(fw) if not line.right]
    finally:
        down(fw, "shop.yml")
    assert not wrong


def test_a_stack_without_docker_fw_options_is_protected(fw: Fw) -> None:
    """compose-examples/unchanged.yml, on a Docker network: the published database is closed, the rest answers."""
    up(fw, "unchanged.yml")
    try:
        wrong = [line for line in unchanged(fw) if not line.right]
    finally:
        down(fw, "unchanged.yml")
    assert not wrong


def test_the_example_of_the_label_language_does_what_it_says(fw: Fw) -> None:
    """compose-examples/labels.yml: the permitted flows from outside, between its two networks, and outbound."""
    up(fw, "labels.yml")
    try:
        name = "labels-{}-1".format
        front = {s: fw.engine.address(name(s), "labels_front") for s in ("web", "admin", "db")}
        inner = {s: fw.engine.address(name(s), "labels_inner") for s in ("web", "api", "backup", "worker")}
        for service, port in (("web", 80), ("web", 9100), ("admin", 8443), ("db", 5432)):
            until(lambda s=service, p=port: fw.host.probe.tcp(front[s][1], p) == "open", f"{service} listens")
        right = {(a, p) for s, p in (("web", 80), ("web", 9100), ("admin", 8443)) for a in front[s]}
        tried = {
            (a, p) for there in (front, inner) for who in there.values() for a in who for p in (22, 80, 5432, 8080)
        }
        found = fw.wan.probe([("tcp", a, p) for a, p in tried | right])
        assert {(a, p) for (_, a, p), verdict in found.items() if verdict == "open"} == right
        for service, verdict in (("api", "open"), ("backup", "open"), ("worker", "silent"), ("web", "open")):
            seen = fw.engine.netns(name(service)).probe([("tcp", a, 5432) for a in front["db"]])
            # web is a neighbour of the database's; all other clients are on another network.
            assert set(seen.values()) == {verdict}, service
        with fw.wan.probe.serve(tcp=[443, 8000]):
            for service, port, verdict in (("worker", 443, "open"), ("worker", 8000, "silent"), ("db", 443, "silent")):
                far = [("tcp", a, port) for a in (fw.wan.FAR_V4, fw.wan.FAR_V6)]
                assert set(fw.engine.netns(name(service)).probe(far).values()) == {verdict}, (service, port)
    finally:
        down(fw, "labels.yml")


def test_the_readmes_first_commands_work(fw: Fw) -> None:
    """After `make install`: create a network, run a labelled container, and it answers on its label's port."""
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^docker (?:network create|run -d) .*$", readme, re.MULTILINE)
    assert len(lines) == 2
    fw.engine.docker("tag", "busybox", "nginx")
    try:
        for line in lines:
            name = "--name first " if " run " in line else ""
            tail = " sleep inf" if name else ""
            fw.engine.host.run(["sh", "-ec", line.replace("run -d ", f"run -d {name}") + tail])
        with fw.engine.serve("first", tcp=[8080, 9090]):
            v6 = fw.engine.address("first", "front")[1]
            assert list(fw.wan.probe([("tcp", v6, 8080), ("tcp", v6, 9090)]).values()) == ["open", "silent"]
    finally:
        fw.remove("first")
        fw.engine.try_docker("network", "rm", "front")
        fw.engine.try_docker("rmi", "nginx")


def test_fwctl_runs_from_the_image(fw: Fw) -> None:
    """The README's `docker run … ports`, `status`, `--help` and `--version` work with the image alone."""
    mount = "/run/docker/plugins:/run/docker/plugins"
    with fw.network() as net:
        app = fw.run(net, "-p", "18600:80", "-p", "18601:5432")
        output = fw.engine.docker("run", "--rm", "-v", mount, IMAGE, "ports")
        assert f"{app:<30} 0.0.0.0:18600->80/tcp" in output
        assert "18601->5432/tcp  (closed to the outside: fw.allow does not open 5432/tcp)" in output
        assert app in fw.engine.docker("run", "--rm", "-v", mount, IMAGE, "status")
    assert "cleanup" in fw.engine.docker("run", "--rm", IMAGE, "--help")
    lost = fw.engine.try_docker("run", "--rm", IMAGE, "status")
    assert lost.returncode == 1
    assert "is the plugin enabled?" in lost.stderr
