"""Test the first moment: dockerd starts its containers as soon as a process listens on the plugin's socket."""

from __future__ import annotations

import socket

from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER, arriving
from tests.waiting import until


def dialled(fw: Running) -> bool:
    """Return True if the socket can be dialled, as dockerd does to see whether the plugin is there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(fw.socket)) == 0


def test_every_bridge_is_closed_before_the_socket_can_be_dialled(own: Running) -> None:
    """At a boot nothing passes to a container once the socket can be dialled, though the plugin is not loaded."""
    box = own.site.docker_box(BR_DOCKER, 100)
    assert arriving(own.site, box)
    own.spawn()
    until(lambda: dialled(own), "a process listens", 15)
    assert arriving(own.site, box) == set()
    until(own.answers, "the plugin answers", 15)
    assert arriving(own.site, box) == set()
