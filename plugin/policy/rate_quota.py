"""How many rates of `fw.rate` the host limits at once, and the message for a container that exceeds it."""

from __future__ import annotations

#: Most limits in the table: one limit is one rate of one address, or of the published ports of one container.
MOST = 2048
#: Why a container's ports are closed, for a message with its name.
FULL = (
    f"fw.rate found no room: this host limits {MOST} rates already, each address's counted; "
    "ports with a rate are closed to new flows until others end"
)
