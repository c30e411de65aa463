"""The network driver: libnetwork's calls over HTTP, published ports, and the relay for the host's loopback.

It changes links and sysctls through `kernel`, binds host ports, and reports to `state`. It never asks Docker by
itself: a look-up is passed to it, and is bounded in time.
"""
