"""Fuzz the parsers with bytes selected by code coverage: `make fuzz`."""
