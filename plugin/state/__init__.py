"""The one writer: every change of what is known goes through here, to the disk and to the kernel.

It touches the state file, docker-fw's tables and conntrack, under one lock: what closes first, then the disk, then one
transaction, then the flows that are no longer accepted. It asks nothing of Docker.
"""
