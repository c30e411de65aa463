"""Bytes for the parsers, chosen by what they have run through: `make fuzz`."""
