"""How many rates of `fw.rate` the host limits at once, and the message for a container that exceeds it."""

from __future__ import annotations

#: Most limits in the table: one limit is one rate of one address, or of the published ports of one container.
MOST = 2048
#: Why a container's ports are closed, for a message with its name.
FULL = (
    f"fw.rate does not fit: this host has {MOST} rate limits already, counted for each address; "
    "ports with a rate are closed to new flows until other limits end"
)
