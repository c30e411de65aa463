"""The network driver: libnetwork's NetworkDriver protocol over HTTP, published ports, and the loopback relay.

It makes links and binds sockets; it never asks Docker by itself.
"""
