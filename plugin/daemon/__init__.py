"""The process: what is built from what, its threads, its start before a socket exists, and its end.

It may use every other package, and no other package uses it. It touches the kernel first of all: where no table of
docker-fw is in place, `early_table` puts one there that opens nothing.
"""
