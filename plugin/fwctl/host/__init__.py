"""What fwctl does to the host while no docker-fw runs: the table and the systemd unit that close before Docker.

It writes below /etc/docker-fw and /etc/systemd, and a running sidecar keeps the file current.
Everything is written whole or not at all.
"""
