"""Compose files as `docker compose` reads them: YAML with positions, variables, include, extends, merging.

It reads files and touches nothing else. Values keep the line where they were written, and bounds keep a few lines of
YAML from becoming a billion values.
"""
