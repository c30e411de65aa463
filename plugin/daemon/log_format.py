"""One record of the log is one line, whatever is in it: names, labels and Docker's errors are others' words."""

from __future__ import annotations

import logging

from plugin.text import MAX_ERROR, printable

_HALF = MAX_ERROR // 2


class OneLine(logging.Formatter):
    """Line breaks and what moves a terminal's cursor are shown, not sent; of a megabyte both ends are."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line: control characters escaped, long text shortened in the middle."""
        text = super().format(record)
        if len(text) > MAX_ERROR:  # the end too: of a traceback that is the error
            text = f"{text[: _HALF - 1]}…{text[-_HALF:]}"
        return printable(text)
