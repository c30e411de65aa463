"""`make bench`: docker-fw, on its own networks and on Docker's, against a Docker without it and against no firewall.

All in one run: one engine has the plugin, a second one of the same version has not, and both hang on one network.

Other programs may be busy on the machine, so nothing here is a bare time: what is compared is taken alternately
(ABAB…), medians and percentiles are told, and packets are counted by the CPU time they cost, not by the clock.
"""
