"""docker-fw: a firewall for containers, as a Docker network plugin with one default-deny nftables table.

`ls plugin` shows its parts: docker, driver and fwctl bring what changes, state keeps it, policy decides, nftables and
kernel do it. ARCHITECTURE.md has the drawings. Importing any module touches nothing.
"""

__version__ = "0.1.0"
