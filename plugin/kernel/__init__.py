"""The rest of Linux: netlink, links, conntrack, sysctls, sockets, capabilities.

It touches the host, and knows nothing of policies.
"""
