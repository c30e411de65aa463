"""Test the lab's cache, which several runs use at the same time."""

from __future__ import annotations

import os
from pathlib import Path

from tests.lab.store import keep_newest


def test_the_entries_that_were_used_last_stay(tmp_path: Path) -> None:
    """Files and directories alike; using an entry again makes it the newest, and other kinds are left alone."""
    for number, name in enumerate(["image-1", "image-2", "image-3", "image-4", "other-1"]):
        path = tmp_path / name
        if number % 2:
            path.mkdir()
        else:
            path.touch()
        os.utime(path, (number, number))
    keep_newest(tmp_path / "image-1", "image-*", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"image-1", "image-4", "other-1"}


def test_another_process_may_remove_an_entry_at_the_same_time(tmp_path: Path) -> None:
    """An entry that is listed and then gone is no error."""
    made = tmp_path / "image-1"
    made.touch()
    (tmp_path / "image-2").symlink_to("gone")  # is listed, and has no status
    keep_newest(made, "image-*", 1)
    assert made.exists()
