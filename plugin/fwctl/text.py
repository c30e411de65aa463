"""Text that others wrote, made safe for a terminal. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text on one line: line breaks, control characters and escape sequences are shown escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
