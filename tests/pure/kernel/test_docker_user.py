"""Test when the rule in DOCKER-USER is looked at, with commands that a test controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.kernel.docker_user import DockerUser

_RULE = '-A DOCKER-USER -m mark --mark 0x8/0x8 -m comment --comment "docker-fw" -j ACCEPT'
_COMMAND = """#!/bin/sh
echo "${0##*/} $3" >> $TEST/calls
case "$3" in
-S) cat $TEST/chain "$0.inserted" 2>/dev/null; exit $(cat $TEST/status) ;;
-I) echo '%s' >> "$0.inserted" ;;
esac
"""


class Commands:
    """`iptables-nft` and its kin: they list the file `chain` and what they inserted, and note their calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proc = directory / "proc"
        self.proc.mkdir()
        for stem in ("iptables", "ip6tables"):
            for variant in ("nft", "legacy"):
                program = directory / f"{stem}-{variant}"
                program.write_text(_COMMAND % _RULE)
                program.chmod(0o755)
        self.chain(_RULE)

    def chain(self, *rules: str, status: int = 0) -> None:
        """Set what they list, and the exit status."""
        (self.directory / "chain").write_text("".join(f"{rule}\n" for rule in rules))
        (self.directory / "status").write_text(str(status))
        for inserted in self.directory.glob("*.inserted"):
            inserted.unlink()

    def calls(self) -> list[str]:
        """Return the calls since the last one."""
        calls = self.directory / "calls"
        found = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return found


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TEST", str(tmp_path))
    return Commands(tmp_path)


@pytest.fixture
def user(commands: Commands) -> DockerUser:
    return DockerUser(0x8, proc=str(commands.proc))


def test_without_a_change_of_the_ruleset_no_program_is_started(commands: Commands, user: DockerUser) -> None:
    """Once the rule is known to be there, it costs nothing until nftables' ruleset changes."""
    user.ensure(changed=True)
    assert {call.split()[0] for call in commands.calls()} == {"iptables-nft", "ip6tables-nft"}
    user.ensure(changed=False)
    assert commands.calls() == []
    commands.chain()
    user.ensure(changed=True)
    assert commands.calls().count("iptables-nft -I") == 1


def test_a_chain_that_does_not_exist_is_no_reason_to_ask_again(commands: Commands, user: DockerUser) -> None:
    """Docker without IPv6 rules, or none at all: the ruleset changes when the chain is made."""
    commands.chain(status=1)
    user.ensure(changed=True)
    commands.calls()
    user.ensure(changed=False)
    assert commands.calls() == []


@pytest.mark.parametrize("status", [2, 4])
def test_a_command_that_failed_is_tried_again_without_a_change(
    commands: Commands, user: DockerUser, status: int
) -> None:
    """If iptables fails, for its lock or for memory, the rule is looked at again at the next interval."""
    commands.chain(status=status)
    user.ensure(changed=True)
    commands.calls()
    commands.chain()
    user.ensure(changed=False)
    assert {"iptables-nft -I", "ip6tables-nft -I"} <= set(commands.calls())


def test_a_rule_that_could_not_be_removed_is_tried_again(commands: Commands, user: DockerUser) -> None:
    """A rule with a former FW_MARK stays only as long as iptables fails to remove it."""
    commands.chain(_RULE, _RULE.replace("0x8/0x8", "0x4/0x4"), _RULE)
    for each in commands.directory.glob("*-nft"):
        each.write_text(each.read_text().replace("esac", "-D) exit 4 ;;\nesac"))
    user.ensure(changed=True)
    assert "iptables-nft -D" in commands.calls()
    user.ensure(changed=False)
    assert "iptables-nft -D" in commands.calls()


def test_iptables_legacy_is_asked_each_time(commands: Commands, user: DockerUser) -> None:
    """No change of its rules is reported. It is asked only if its tables are in use."""
    for family in ("ip", "ip6"):
        (commands.proc / f"{family}_tables_names").write_text("nat\nfilter\n")
    user.ensure(changed=True)
    commands.calls()
    commands.chain()
    user.ensure(changed=False)
    assert {call for call in commands.calls() if "-I" in call} == {"iptables-legacy -I", "ip6tables-legacy -I"}
