"""Torture: an outsider never stops probing while everything around docker-fw breaks. `python -m tests.torture`."""
