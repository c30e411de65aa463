"""Test that flows that the host's connection tracking helpers expect are filtered like any flow."""

from __future__ import annotations

import socket

from plugin.model import Peer, Rule
from tests.kernel.ct_helpers import helper
from tests.kernel.netns import inside
from tests.kernel.packets import new_flow, ping
from tests.kernel.site import Box, Site
from tests.lab.netns import FORWARDING
from tests.waiting import until


def listening(namespace: str, address: object, port: int) -> socket.socket:
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((str(address), port))
    sock.listen()
    sock.settimeout(5)
    return sock


def answers(site: Site, box: Box, port: int) -> bool:
    """Return True if the outsider's server, at its own address, gets a connection."""
    with inside(site.wan.path):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(1)
        sock.bind((str(site.OUT4), 0))
        return sock.connect_ex((str(box.v4), port)) == 0


def test_a_container_opens_no_port_by_what_it_says_to_an_ftp_server(site: Site) -> None:
    """The host reads ports from FTP (`ct helper`): a container that names its closed port does not open it.

    It names the port to an outsider's server. A port that a rule opens stays open. Nor may another container forge the
    server's address for an expected connection.
    """
    site.host.sysctl(FORWARDING)
    box, hostile = site.box(site.network(1), 2), site.docker_box("br-000000000001", 101)
    allowed = Rule("tcp", 9090, 9090, (Peer("prefix", str(site.OUT4)),))
    more = site.docker_elements(hostile, "br-000000000001")
    site.load(site.known(box, Rule("tcp", 8080, 8080), allowed), more=more)
    with (
        helper(site, "ftp"),  # which reads ports from every client's talk with an FTP server
        listening(site.wan.path, site.OUT4, 21) as server,
        listening(box.path, box.v4, 5432),
        listening(box.path, box.v4, 8080),
    ):
        with inside(box.path):
            control = socket.create_connection((str(site.OUT4), 21), 5)
        there, _ = server.accept()
        with control, there:
            there.settimeout(5)
            address = str(box.v4).replace(".", ",")

            def say(*lines: str) -> None:
                for line in lines:
                    control.sendall(f"{line}\r\n".encode())
                    assert there.recv(200)
                    there.sendall(b"200 well\r\n")
                    assert control.recv(200)

            def expects(port: int) -> None:
                say(f"PORT {address},{port >> 8},{port & 255}")
                shown = "/proc/net/nf_conntrack_expect"
                until(lambda: f"dport={port}" in site.run("cat", shown).stdout, "the helper expects a connection")

            say("USER a", "NOOP")  # only lets the helper follow the sequence numbers
            expects(5432)
            assert answers(site, box, 8080)
            assert not answers(site, box, 5432)
            expects(9090)
            forged = new_flow("tcp", site.OUT4, box.v4, 9090, 20000)
            assert not site.deliver([forged], box, hostile, last=ping(hostile.v4, box.v4))
