"""Text from anywhere → text for a log or a terminal: one line, printable, of bounded length. Pure.

Labels, names and answers may hold anything: line breaks, terminal escape sequences, megabytes.
"""

from __future__ import annotations

#: Characters of an error: a hundred mistakes in labels, but not a megabyte of them.
MAX_ERROR = 8000


def printable(text: str) -> str:
    """The text on one line: each character that is not printable becomes its escape (`\\n`, `\\x1b`, `\\u202e`)."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, length: int) -> str:
    """The text, cut to a number of characters, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[:length] + "…"


def readable(text: str) -> str:
    """The text on one line, of at most MAX_ERROR characters before they are escaped: for logs and people."""
    return printable(shortened(text, MAX_ERROR))
