"""What people write: label keys, their values, and every mistake in them.

Pure: it reads text and gives rules, or problems that say what would be right. It touches nothing, and knows neither
Docker nor nftables. A value that is wrong never becomes a rule.
"""
