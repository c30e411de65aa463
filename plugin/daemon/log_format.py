"""Formats each log record as one line: names, labels and Docker's errors in it are untrusted text."""

from __future__ import annotations

import logging

from plugin.text import MAX_ERROR, printable

_HALF = MAX_ERROR // 2


class OneLine(logging.Formatter):
    """Escapes line breaks and terminal control characters; shortens a long record to its two ends."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line: control characters escaped, long text shortened in the middle."""
        text = super().format(record)
        if len(text) > MAX_ERROR:  # the end is kept too: in a traceback it is the error
            text = f"{text[: _HALF - 1]}…{text[-_HALF:]}"
        return printable(text)
