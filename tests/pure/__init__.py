"""The pure tier: no root, no kernel, no Docker; what the rooms decide, as data."""
