"""docker-fw's tables: their sets and rules as text, policies as elements, and the tables in the kernel.

No other package knows nftables. Most of it is pure; only `table`, `dump` and `identity` touch the kernel, and only
tables of docker-fw. Container data are elements; the rules are static, but for what a few features add (`hooks`).
"""
