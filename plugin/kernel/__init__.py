"""The rest of Linux: links, conntrack, listening sockets, dropped packets, sysctls, cgroups, capabilities.

It reads and writes the host through netlink, /proc/sys, sockets and iptables (one rule in DOCKER-USER). It decides
nothing and knows no policy: callers decide what to create, cut or remove.
"""
