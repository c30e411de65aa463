"""Test what runs instead of a plugin that must not start."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from plugin.daemon import refuse_all
from plugin.daemon.refuse_all import RefusingPlugin
from plugin.settings import read


def test_an_end_amid_a_load_leaves_a_complete_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after the table that it was loading: an incomplete one would refuse pings, too, for a minute."""
    loading, goes_on, loaded = threading.Event(), threading.Event(), threading.Event()

    class Table:
        def __init__(self, *_: Any) -> None:
            pass

        def closes(self) -> bool:
            return loaded.is_set()

    def close(*_: Any, lasts: bool) -> None:
        loading.set()
        goes_on.wait(20)
        loaded.set()

    monkeypatch.setattr(refuse_all, "KernelTable", Table)
    monkeypatch.setattr(refuse_all, "close", close)
    monkeypatch.setattr(refuse_all.identity, "free_name", lambda: "docker-fw")
    plugin = RefusingPlugin(read({}), "a newer version wrote the state")
    plugin.stop()  # before its start, too
    plugin = RefusingPlugin(read({}), "a newer version wrote the state")
    plugin.start(lambda: True)
    assert loading.wait(20)
    end = threading.Thread(target=plugin.stop)
    end.start()
    end.join(0.05)
    assert end.is_alive()
    goes_on.set()
    end.join(20)
    assert loaded.is_set()
    assert not end.is_alive()
