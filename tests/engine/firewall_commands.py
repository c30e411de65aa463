"""The README's commands for hosts with ufw or firewalld."""

from __future__ import annotations

#: The README's commands for a host with ufw, and a Docker without DOCKER-USER for IPv6 (or without any).
UFW_ROUTES = ("ufw route allow out on fw-+", "ufw route allow in on fw-+")
#: The README's commands for a host with firewalld and a Docker ≥ 27, which makes the policy `docker-forwarding`.
ZONE_OF_DOCKER = ("firewall-cmd --permanent --zone=docker --add-interface=fw-+", "firewall-cmd --reload")
#: The same with any Docker; here the host's services stay closed to containers on docker-fw networks.
ZONE_OF_OURS = (
    "firewall-cmd --permanent --new-zone=fw",
    "firewall-cmd --permanent --zone=fw --add-interface=fw-+",
    "firewall-cmd --permanent --new-policy=fw-in",
    "firewall-cmd --permanent --policy=fw-in --set-target=ACCEPT",
    "firewall-cmd --permanent --policy=fw-in --add-ingress-zone=ANY",
    "firewall-cmd --permanent --policy=fw-in --add-egress-zone=fw",
    "firewall-cmd --permanent --new-policy=fw-out",
    "firewall-cmd --permanent --policy=fw-out --set-target=ACCEPT",
    "firewall-cmd --permanent --policy=fw-out --add-ingress-zone=fw",
    "firewall-cmd --permanent --policy=fw-out --add-egress-zone=ANY",
    "firewall-cmd --reload",
)
