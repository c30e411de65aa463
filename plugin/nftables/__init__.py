"""docker-fw's tables: their sets and rules as text, policies as elements, and the tables in the kernel.

Only `table`, `dump` and `identity` speak to the kernel; the rest is pure.
"""
