"""Label keys, their values, and all mistakes in them.

Pure: it parses text into rules, or into problems that have the correct form. It touches nothing, and knows neither
Docker nor nftables. A wrong value never becomes a rule.
"""
