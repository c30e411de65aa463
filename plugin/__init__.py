"""docker-fw: a Docker network driver that keeps every container behind a default-deny nftables policy."""

__version__ = "0.1.0"
