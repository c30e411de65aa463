"""Checks the form of one compose file's values and notes a mistake for each wrong one. Pure.

Lists that compose reads as maps (labels, networks) become maps here, so that files merge by key.
"""

from __future__ import annotations

from dataclasses import replace

from plugin.fwctl.check.compose.model import Notes, Place, Shape, Value

#: The keys of a service, and of a network, that docker-fw reads. No other key matters to it.
SERVICE: Shape = {
    "labels": None,
    "label_file": None,
    "networks": None,
    "network_mode": None,
    "ports": None,
    "container_name": None,
    "extends": None,
    "annotations": None,
    "deploy": {"labels": None},
    "build": {"labels": None},
}
NETWORK: Shape = {
    "driver": None,
    "driver_opts": None,
    "internal": None,
    "external": None,
    "name": None,
    "labels": None,
    "enable_ipv6": None,
}
FILE: Shape = {"name": None, "include": None, "services": {"*": SERVICE}, "networks": {"*": NETWORK}}

_LABELS = 'a map (fw.allow: "8080") or a list (- fw.allow=8080)'


def formed(document: Value, notes: Notes) -> Value:
    """Check a whole document. A value of the wrong form is left out, and noted."""
    return Former(notes).document(document)


class Former:
    """Walks through a document once; `service` is the one that notes are about."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._service = ""

    def document(self, value: Value) -> Value:
        """The value with the form of a compose file; what has another form is noted and left out."""
        if value.data is None:
            return replace(value, data={})
        top = self._map(value, "a compose file", "a map of services, networks and so on")
        out: dict[str, Value] = {}
        for key, read in (("services", self._a_service), ("networks", self._a_network)):
            if key in top.map:
                example = "front: {}" if key == "networks" else "web: {image: nginx}"
                section = self._map(top.map[key], key, f"a map, like {example}", empty=True)
                found = {name: read(name, each) for name, each in section.map.items()}
                out[key] = replace(section, data={name: each for name, each in found.items() if each is not None})
        self._service = ""
        if "name" in top.map and (name := self._text(top.map["name"], "name", "text")):
            out["name"] = name
        if "include" in top.map and (include := self._list(top.map["include"], "include", "a list of files")):
            out["include"] = include
        return replace(top, data=out)

    def _a_service(self, name: str, value: Value) -> Value | None:
        self._service = name
        if value.tag == "reset":
            return value
        service = self._map(value, "a service", "a map, like {image: nginx}")
        out: dict[str, Value] = {}
        for key, each in service.map.items():
            if each.tag == "reset":
                out[key] = each
            elif key.lower().startswith("fw."):
                self._notes.mistake(each.place, f"{key} is a label; move it under labels:", name)
            elif (read := self._key(key, each)) is not None:
                out[key] = read
        return replace(service, data=out)

    def _key(self, key: str, value: Value) -> Value | None:
        """Read one key of a service."""
        match key:
            case "labels" | "annotations":
                return self._pairs(value, key)
            case "networks":
                return self._attachments(value)
            case "ports":
                return self._list(value, key, 'a list, like ["8080:8080"]')
            case "deploy" | "build":
                if key == "build" and isinstance(value.data, str):
                    return None
                section = self._map(value, key, "a map", empty=True)
                inner = {k: pairs for k, v in section.map.items() if (pairs := self._pairs(v, f"{key}.labels"))}
                return replace(section, data={k: v for k, v in inner.items() if k == "labels"})
            case "extends" | "label_file":
                return value
        return self._text(value, key, "text")

    def _a_network(self, name: str, value: Value) -> Value | None:
        self._service = ""
        if value.tag == "reset":
            return value
        network = self._map(value, f"network {name}", "a map, like {driver: bridge}", empty=True)
        out: dict[str, Value] = {}
        for key, each in network.map.items():
            if each.tag == "reset" or (key == "external" and isinstance(each.data, dict)):
                out[key] = each
            elif key.lower().startswith("fw."):
                self._notes.mistake(each.place, f"network {name}: {key} is an option; move it under driver_opts:")
            elif key in ("driver_opts", "labels"):
                read = self._options(each, key) if key == "driver_opts" else self._pairs(each, key)
                out.update({key: read} if read else {})
            elif text := self._text(each, key, "text"):
                out[key] = text
        return replace(network, data=out)

    def _attachments(self, value: Value) -> Value | None:
        """Read a service's networks: a list of names, or a map of names with options."""
        right = "a list of networks (- front) or a map (front: {})"
        if isinstance(value.data, list):
            named = [text for item in value.data if (text := self._text(item, "networks", right))]
            return replace(value, data={each.text: Value({}, each.place) for each in named})
        out = {}
        for name, each in self._map(value, "networks", right, empty=True).map.items():
            attachment = self._map(each, f"networks.{name}", "a map, like {driver_opts: {}}", empty=True)
            options = attachment.map.get("driver_opts")
            read = self._options(options, "driver_opts") if options else None
            understood = {"driver_opts": read} if read else {}
            for key, stray in attachment.map.items():
                if key.lower().startswith("fw."):
                    self._mistake(stray.place, f"networks.{name}: {key} is an option; move it under driver_opts:")
            out[name] = replace(attachment, data=understood)
        return replace(value, data=dict(out))

    def _options(self, value: Value, what: str) -> Value | None:
        if isinstance(value.data, list):
            self._mistake(value.place, f'{what} must be a map, like {{fw.allow: "8080"}}, not a list')
            return None
        return self._pairs(value, what)

    def _pairs(self, value: Value, what: str) -> Value | None:
        """Read labels: a map, or a list of KEY=VALUE. Null is the empty text, as in compose."""
        if value.tag == "reset":
            return value
        if not isinstance(value.data, list):
            table = self._map(value, what, _LABELS, empty=True)
            return replace(table, data={k: text for k, v in table.map.items() if (text := self._label(v, what, k))})
        found: dict[str, Value] = {}
        for item in value.data:
            text = self._label(item, what, "")
            if text is None:
                continue
            key, _, rest = text.text.partition("=")
            if key in found and found[key].text != rest and key.lower().startswith("fw."):
                self._notes.warn(
                    item.place,
                    f"{key} is already set in line {found[key].place.line}; only this one counts",
                    self._service,
                )
            found[key] = Value(rest, item.place)
        return replace(value, data=dict(found))

    def _label(self, value: Value, what: str, key: str) -> Value | None:
        if value.tag == "reset":
            return value
        if isinstance(value.data, list | dict):
            right = 'text, like "8080, 53/udp"' if key.lower().startswith("fw.") else "text"
            self._mistake(value.place, f"{what}: {key or 'each'} must be {right}, not {_kind(value)}")
            return None
        return replace(value, data=value.text)

    def _text(self, value: Value, what: str, right: str) -> Value | None:
        if isinstance(value.data, list | dict):
            self._mistake(value.place, f"{what} must be {right}, not {_kind(value)}")
            return None
        return value if value.data is not None else None

    def _list(self, value: Value, what: str, right: str) -> Value | None:
        if isinstance(value.data, list) or value.data is None:
            return value if value.data is not None else None
        self._mistake(value.place, f"{what} must be {right}, not {_kind(value)}")
        return None

    def _map(self, value: Value, what: str, right: str, *, empty: bool = False) -> Value:
        """Read a map. `empty`: null is right too."""
        if isinstance(value.data, dict):
            return value
        if value.data is not None or not empty:
            self._mistake(value.place, f"{what} must be {right}, not {_kind(value)}")
        return replace(value, data={})

    def _mistake(self, place: Place, text: str) -> None:
        self._notes.mistake(place, text, self._service)


def _kind(value: Value) -> str:
    if isinstance(value.data, str):
        shown = value.data if len(value.data) <= 40 else value.data[:40] + "…"
        return f'"{shown}"'
    return "a map" if isinstance(value.data, dict) else "a list" if isinstance(value.data, list) else "nothing"
