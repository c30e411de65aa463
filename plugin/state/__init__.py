"""What is known and kept, and the one place that changes it: state file, difference, transaction, cut flows.

It touches the state file, docker-fw's tables and conntrack.
"""
