"""The pure tier: no root, no kernel, no Docker; decisions, tested as data."""
