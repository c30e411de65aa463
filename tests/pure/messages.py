"""Messages about wrong values that several tests expect."""

PORT = "is not a port (1-65535, a range like 9000-9100, or *)"
PROTO = "is not a protocol (tcp, udp or sctp)"
PEER = (
    "is not an address, a prefix like 2001:db8::/32, container:NAME, service:NAME, project:NAME, network:NAME, "
    "host or any"
)
RATE = "is not a rate, like 22 5/minute burst 10 (per second, minute, hour or day)"
