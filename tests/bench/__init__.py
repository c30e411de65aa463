"""`make bench`: docker-fw against Docker's own bridge, on one engine, in one run.

Other programs may be busy on the machine, so nothing here is a bare time: what is compared is taken alternately
(ABAB…), medians and percentiles are told, and packets are counted by the CPU time they cost, not by the clock.
"""
