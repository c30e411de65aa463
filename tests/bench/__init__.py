"""Run `make bench`: docker-fw, on docker-fw and Docker networks, against a Docker without it and against no firewall.

All is in one run. On real engines, one has the plugin and a second one of the same version has not, and both are
attached to one network. Crowds that real engines do not carry are simulated: tables that the plugin's code makes, or
the plugin's processes beside a simulated Docker API. `rows` has every row with its goal, and says which is which.

Other programs may load the machine, so no ratio is of two separate measurements: the compared variants are measured
alternately (ABAB…), results are medians and percentiles, and packets are measured by the CPU time they cost, not by the
clock.
"""
