"""Docker's API and events: which networks and containers there are, what their labels say, who has left.

It asks Docker's socket, read only and within bounds of time and size, and reports to `state`. What Docker sends is
checked piece by piece: an entry that is wrong or too large stays closed by itself.
"""
