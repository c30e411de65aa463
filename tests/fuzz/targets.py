"""The parsers of external data, each as a function of bytes: it returns, or raises an expected error."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from plugin.docker import container_labels
from plugin.docker import parse as listing
from plugin.driver import protocol
from plugin.fwctl.check.run import run as check
from plugin.fwctl.drop_record import Drop, header, line
from plugin.kernel import netlink as nl
from plugin.kernel.names import bridge_name
from plugin.labels import parser
from plugin.labels.duration import parse as duration
from plugin.labels.grammar import parse_allow, parse_deny, parse_egress, parse_rate, taken_back
from plugin.labels.keys import KEYS
from plugin.model import Defaults, FwError
from plugin.policy import bans
from plugin.state import store


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def values(data: bytes) -> None:
    """Parse a label's value, at each key: rules that read back as written, or mistakes of one line each."""
    text = data.decode("utf-8", "replace")
    for parse in (parse_egress, parse_deny, parse_rate):
        parse(text)
    for rule in parse_allow(text)[0]:
        assert parse_allow(str(rule))[0] == [rule], (text, rule)
    taken_back(text)
    for key in KEYS:
        parsed = parser.parse({key: text})
        assert not (parsed.problems and parsed.spec.allow), text
        assert all(str(problem).isprintable() for problem in parsed.problems)


def keys(data: bytes) -> None:
    """Parse labels as KEY=VALUE lines."""
    lines = (line.partition("=") for line in data.decode("utf-8", "replace").split("\n"))
    parsed = parser.parse({"fw." + key: value for key, _, value in lines})
    assert not (parsed.problems and parsed.spec.allow)
    assert all(len(str(problem)) < 4000 for problem in parsed.problems)


def words(data: bytes) -> None:
    """Parse the arguments of `fwctl`: prefixes and times."""
    text = data.decode("utf-8", "replace")
    for read, error in ((bans.read, FwError), (duration, ValueError)):
        try:
            read(text)  # type: ignore[operator]
        except error:
            continue


def requests(data: bytes) -> None:
    """Parse requests of dockerd."""
    body = _json(data)
    for read in (lambda b: protocol.create_network(b, bridge_name), protocol.create_endpoint, protocol.port_bindings):
        try:
            read(body)
        except FwError:
            continue


def lists(data: bytes) -> None:
    """Parse Docker's lists: a network, a container, an inspection, an event."""
    raw = _json(data)
    listing.event(raw if isinstance(raw, dict) else {})
    for read in (
        listing.network,
        listing.endpoint_ids,
        listing.driver_options,
        listing.not_guarded,
        container_labels.compose_key,
        lambda r: list(listing.published(r)),
        lambda r: listing.bridges([r]),
        lambda r: [
            container_labels.on_network(who, "net")
            for who in (container_labels.read(r, {}), container_labels.read(r, None, unknown="gone"))
        ],
        lambda r: list(listing.endpoints(r, container_labels.read(r, {}))),
    ):
        try:
            read(raw)
        except listing.MALFORMED:
            continue


def states(data: bytes) -> None:
    """Parse a state file."""
    try:
        store._decode(_json(data))
    except (*store.NOT_AS_IT_SHOULD_BE, RecursionError, FwError):
        return


def packets(data: bytes) -> None:
    """Parse a dropped packet's first bytes."""
    if found := header(data):
        assert line(Drop(1, 0.0, "to", found).as_data()).isprintable()


def netlink(data: bytes) -> None:
    """Parse the kernel's messages: however they are truncated, the reading ends."""
    for _, _, body in nl.messages(data):
        for each in nl.each(body):
            nl.attributes(each)


def files(data: bytes) -> None:
    """Parse a compose file."""
    path = os.path.join(tempfile.gettempdir(), f"docker-fw-fuzz-{os.getpid()}.yml")
    with open(path, "wb") as file:
        file.write(data)
    try:
        out = io.StringIO()
        assert check([path], {}, False, out, Defaults()) in (0, 1, 2)
        assert all(c.isprintable() or c == "\n" for c in out.getvalue())
    finally:
        os.unlink(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (values, keys, words, requests, lists, states, packets, netlink, files)
}
