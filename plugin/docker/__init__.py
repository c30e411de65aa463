"""Docker's API and events: which networks and containers there are, what their labels say, who has left.

It asks Docker's socket, read only, and reports to `plugin.state`.
"""
