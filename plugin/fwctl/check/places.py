"""docker-fw's keys in places where they have no effect, and keys that only look like them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from plugin.fwctl.check.compose.model import Notes, Value
from plugin.fwctl.check.compose.stack import Attachment, Service, Stack, near
from plugin.labels.keys import KEYS, ONE_NETWORK, PREFIX


def misplaced(services: Mapping[str, Value], networks: Mapping[str, Value], notes: Notes) -> None:
    """Note labels of a swarm service, an image or a network, and annotations."""
    for name, service in services.items():
        for key, value in _ours(_inner(service, "deploy", "labels")):
            what = f"deploy.labels {key} has no effect: it is a label of the swarm service, not of its containers; "
            notes.mistake(value.place, what + "move it to the service's labels:", name)
        for key, value in _ours(_inner(service, "build", "labels")):
            what = f"build.labels {key} opens nothing: it is a label of the image; move it to the service's labels:"
            notes.warn(value.place, what, name)
        for key, value in _ours(_inner(service, "annotations")):
            notes.warn(value.place, f"annotation {key} has no effect; move it to labels:", name)
    for name, network in networks.items():
        for key, value in _ours(_inner(network, "labels")):
            what = f"label {key} has no effect; to apply it to every container, write it under driver_opts:"
            notes.warn(value.place, f"network {name}: {what}")


def without_effect(stack: Stack, notes: Notes) -> None:
    """Note labels of services that docker-fw does not protect, unread options, and numbers that YAML changes."""
    for service in stack.services.values():
        why = _unprotected(service)
        for key, value in _ours(service.labels):
            if why:
                notes.warn(value.place, f"label {key} has no effect: {why}", service.name)
            if value.written:
                what = f"label {key}: YAML reads {value.written} as the number {value.text}; put it in quotes"
                notes.warn(value.place, what, service.name)
        for key, value in service.labels.items():
            if likely := lookalike(key):
                notes.warn(value.place, f"label {key} has no effect; did you mean {likely}?", service.name)
        for attachment in service.attachments:
            _unread_options(service, attachment, notes)


def _unread_options(service: Service, attachment: Attachment, notes: Notes) -> None:
    """Note the options of an attachment to a network that docker-fw does not protect."""
    net = attachment.net
    for key, value in _ours(attachment.options) if net.kind == "apart" else ():
        notes.warn(value.place, f"driver_opts {key} has no effect: {net.key} is {net.why}", service.name)


def _unprotected(service: Service) -> str:
    """Return why docker-fw applies none of the service's labels; "" if it applies them."""
    if service.shares:
        whose = service.shares.replace(":", " ", 1)
        return f"{service.name} shares the network of {whose}, whose labels apply; move it there"
    if all(attachment.net.kind == "apart" for attachment in service.attachments):
        return "; ".join(dict.fromkeys(f"{each.net.key} is {each.net.why}" for each in service.attachments))
    return ""


def lookalike(key: str) -> str:
    """Return the docker-fw key that a label like fw-allow or FW_ALLOW probably means; "" if none."""
    bare = re.sub(r"[^a-z0-9]+", ".", key.lower()[:128]).strip(".").removeprefix("docker.")
    if key.lower().startswith(PREFIX) or not bare.startswith("fw"):
        return ""
    if bare.startswith(ONE_NETWORK):
        return f"{ONE_NETWORK}NAME.{bare.rpartition('.')[2]}"
    same = (known for known in KEYS if known.replace(".", "") == bare.replace(".", ""))
    like = (known for known in KEYS if bare.startswith(PREFIX) and near(bare, [known]))
    return next(same, "") or next(like, "")


def _inner(value: Value, *path: str) -> Mapping[str, Value]:
    for key in path:
        value = value.map.get(key, Value(None, value.place))
    return value.map


def _ours(pairs: Mapping[str, Value]) -> Iterable[tuple[str, Value]]:
    return [(key, value) for key, value in pairs.items() if key.lower().startswith(PREFIX)]
