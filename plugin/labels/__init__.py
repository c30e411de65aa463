"""What people write: one label's value, a container's labels, a setting's rules, and every mistake in them.

Pure: it touches nothing, and knows neither Docker nor nftables.
"""
