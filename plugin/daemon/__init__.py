"""The process: composition of all parts, its threads, its start before a socket exists, and its end.

It may use every other package, and no other package uses it. It touches the kernel first: if no docker-fw table is in
place, `early_table` adds one that opens nothing.
"""
