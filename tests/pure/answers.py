"""Answers of the plugin to `fwctl`, for tests of its output."""

from typing import Any

#: `GET /status` of a docker-fw without networks, where all is well.
QUIET_STATUS: dict[str, Any] = {
    "version": "1",
    "now": 1.0,
    "networks": [],
    "guarded": [],
    "apart": {},
    "foreign": [],
    "overrides": [],
    "banned": 0,
    "listening": True,
    "proxy_known": True,
    "owned": True,
    "binds": True,
    "unfit": "",
    "unsaved": "",
    "watched": True,
    "host_resolver": "",
}
