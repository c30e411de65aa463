"""Docker's API and events: which networks and containers exist, what their labels mean, which containers left.

It reads Docker's socket, within bounds of time and size, and reports to `state`. Docker's data are checked piece by
piece: an entry that is wrong or too large stays closed by itself.
"""
