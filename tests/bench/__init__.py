"""Run `make bench`: docker-fw, on docker-fw and Docker networks, against a Docker without it and against no firewall.

All is in one run: one engine has the plugin, a second one of the same version has not, and both are attached to one
network.

Other programs may load the machine, so no result is a bare time: the compared variants are measured alternately
(ABAB…), results are medians and percentiles, and packets are measured by the CPU time they cost, not by the clock.
"""
