"""The default paths that the first program of a start needs; `plugin.settings` has all others. It imports nothing."""

from __future__ import annotations

#: FW_SOCKET, on which Docker finds the driver.
SOCKET = "/run/docker/plugins/fw.sock"
#: FW_STATE, which keeps networks and endpoints across restarts.
STATE = "/var/lib/docker-fw/state.json"
#: The boot table, beside the state file. The longest one that is read, in bytes: 100 for each of 500,000 bans.
BOOT_FILE = "boot.nft"
LONGEST_BOOT_FILE = 50_000_000
