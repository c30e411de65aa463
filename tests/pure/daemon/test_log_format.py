"""docker-fw's log: one record, one line, whatever it contains."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import subprocess
import sys
import time
from logging.config import DictConfigurator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugin.daemon.log_format import OneLine
from plugin.text import MAX_ERROR
from tests.pure.strategies import examples

ROOT = Path(__file__).parents[3]
#: An extra line, a terminal's title, right-to-left text, code points without UTF-8 bytes, and an empty text.
ODD = "a\nERROR plugin.nftables.table: b\r\x1b]0;x\x07\u202e\ud800\x00\x85\u2028"


def written(message: str, *arguments: object, error: BaseException | None = None) -> str:
    record = logging.LogRecord("plugin.x", logging.ERROR, "", 0, message, arguments, None)
    if error:
        record.exc_info = (type(error), error, error.__traceback__)
    return OneLine("%(levelname)s %(name)s: %(message)s").format(record)


@given(st.text())
@example(ODD)
@examples(100)
def test_a_record_is_one_line(text: str) -> None:
    """A record with any content has no second line, no escape sequence, and no character that a stream cannot write."""
    line = written("container %s stays closed", text)
    assert line.isprintable()
    line.encode()
    assert line.startswith("ERROR plugin.x: container ")


def test_plain_text_is_unchanged() -> None:
    """Names in any script stay unchanged."""
    assert written("container %s: %d", "wébсайт-網站", 5) == "ERROR plugin.x: container wébсайт-網站: 5"


def test_an_error_is_one_line_with_its_message() -> None:
    """A traceback with a megabyte in its middle keeps both the message and the error."""
    try:
        raise ValueError("x" * (1 << 20) + "\n the cause")
    except ValueError as error:
        line = written("a look failed\n", error=error)
    assert line.startswith("ERROR plugin.x: a look failed\\n")
    assert line.endswith("\\n the cause")
    assert len(line) <= 2 * MAX_ERROR


def test_megabytes_are_cut_before_they_are_escaped() -> None:
    """A name, a label or a Docker answer of 20 MB takes less than a second, and no more space than any other."""
    start = time.thread_time()
    line = written("Docker's API did not answer: %s", "\x00" * (20 << 20))
    assert time.thread_time() - start < 1
    assert len(line) <= 5 * MAX_ERROR  # each is four characters now


def test_the_plugin_uses_this_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration that gunicorn gets uses this format."""
    # Variables of the tests (FW_LAB_CACHE, FW_ENGINES) are no settings of the product.
    for name in [name for name in os.environ if name.startswith("FW_")]:
        monkeypatch.delenv(name)
    gunicorn_conf = importlib.import_module("plugin.gunicorn_conf")
    config = copy.deepcopy(gunicorn_conf.logconfig_dict)
    made = {name: DictConfigurator({}).configure_formatter(each) for name, each in config["formatters"].items()}
    assert {type(made[handler["formatter"]]) for handler in config["handlers"].values()} == {OneLine}
    record = logging.LogRecord("plugin.docker.client", logging.ERROR, "", 0, "silent", (), None)
    assert made["plain"].format(record) == "ERROR plugin.docker.client: silent"


def test_fwctl_uses_this_format() -> None:
    """Warnings of the modules that a command uses are on stderr in the same form, escaped."""
    code = (
        "import logging\nfrom plugin.fwctl.cli import log, main\n"
        f"log.run = lambda _: logging.getLogger('plugin.x').error({ODD!r}) or 0\n"
        "raise SystemExit(main.main(['log']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode().splitlines() == [
        "fwctl: a\\nERROR plugin.nftables.table: b\\r\\x1b]0;x\\x07\\u202e\\ud800\\x00\\x85\\u2028"
    ]
