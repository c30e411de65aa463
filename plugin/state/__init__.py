"""The only writer: every change of the facts is made here, and written to the disk and to the kernel.

It changes the state file, docker-fw's tables and conntrack, under one lock and in this order: closing elements, the
disk, one transaction, the flows that are no longer accepted. It sends no requests to Docker.
"""
