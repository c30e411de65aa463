"""The one rule in Docker's DOCKER-USER chain that accepts what docker-fw's table accepted, identified by a mark.

Docker's FORWARD chain ends in a drop, and an accept in docker-fw's table does not overrule it. The rule is placed
after the rules of other programs (fail2ban, CrowdSec) and before a closing RETURN, in the variant of iptables that
dockerd uses. It opens nothing by itself: only docker-fw's table sets the mark, and clears it on all other packets.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

log = logging.getLogger(__name__)
CHAIN = "DOCKER-USER"
_LEGACY = "-legacy"
#: iptables' exit status if a chain does not exist, or has rules that iptables cannot show (xtables.h: OTHER_PROBLEM).
_NO_CHAIN = 1
#: Families as netfilter writes them under /proc/net, with the stem of their commands.
_STEMS = {"ip": "iptables", "ip6": "ip6tables"}
#: The rule as `iptables -S` prints it, for any value that FW_MARK had when it was inserted.
_OURS = re.compile(r'-A DOCKER-USER -m mark --mark \S+ -m comment --comment "?docker-fw"? -j ACCEPT')


class DockerUser:
    """`mark` is docker-fw's bit. `proc` is the directory where the kernel lists the legacy tables in use."""

    def __init__(self, mark: int, proc: str = "/proc/net") -> None:
        self._mark = f"{mark:#x}/{mark:#x}"
        self._proc = Path(proc)
        #: The commands of iptables-nft whose chain is not known to be right since the ruleset changed last.
        self._due: set[str] = set()

    def ensure(self, *, changed: bool) -> None:
        """Insert the rule where DOCKER-USER lacks it.

        `changed`: nftables' ruleset may have changed since the last call. Otherwise iptables-nft has nothing new to
        say, and each question costs a process. Changes by iptables-legacy are not reported at all.
        """
        commands = self._commands()
        if changed:
            self._due.update(commands)
        for command in commands:
            if (command in self._due or command.endswith(_LEGACY)) and self._ensure(command):
                self._due.discard(command)

    def _ensure(self, command: str) -> bool:
        """Insert the rule with this command if it is missing; False if that failed and should be tried again."""
        listed = _run(command, "-S", CHAIN)
        if listed is None or listed.returncode:
            # No such chain: the ruleset changes when it is made. Other failures may be of the moment (iptables' lock).
            return listed is not None and listed.returncode == _NO_CHAIN
        rules = _of_chain(listed)
        if self._at(rules) != self._want(rules) and not self._place(command, rules):
            return False
        return self._remove(command, self._former)

    def remove(self) -> None:
        """Remove the rule, at any position and with any mark."""
        for command in self._commands():
            self._remove(command, _ours)

    def _remove(self, command: str, which: Callable[[str], bool]) -> bool:
        """Remove these rules; True if none is left."""
        while listed := _run(command, "-S", CHAIN):
            at = next((number for number, rule in enumerate(_of_chain(listed), 1) if which(rule)), 0)
            if not at:
                return not listed.returncode
            if not _change(command, "-D", CHAIN, str(at)):
                return False
        return False

    def _former(self, rule: str) -> bool:
        """True for a rule of another FW_MARK.

        docker-fw does not use that bit any more, and its table does not clear it.
        """
        return _ours(rule) and self._mark not in rule.split()

    def _place(self, command: str, rules: list[str]) -> bool:
        # Insert at the new position first, then delete the old rule: a moment with two is harmless, one without is
        # not.
        old = self._at(rules)
        position = self._want(rules) if not old else self._want(rules) + 1
        done = _change(command, "-I", CHAIN, str(position), *self._rule())
        if done and old:
            _change(command, "-D", CHAIN, str(old))
        if done:
            log.info("%s: chain %s accepts the packets that docker-fw accepted", command, CHAIN)
        return done

    def _rule(self) -> list[str]:
        return ["-m", "mark", "--mark", self._mark, "-m", "comment", "--comment", "docker-fw", "-j", "ACCEPT"]

    def _at(self, rules: list[str]) -> int:
        """Return the rule's number, from 1; 0 if it is not there."""
        return next((n for n, rule in enumerate(rules, 1) if self._mark in rule and "docker-fw" in rule), 0)

    def _want(self, rules: list[str]) -> int:
        """Return the rule's position: last, except before a RETURN that ends the chain (20.10-27 put one there)."""
        others = [rule for rule in rules if not (self._mark in rule and "docker-fw" in rule)]
        if others and others[-1] == f"-A {CHAIN} -j RETURN":
            return len(others)
        return len(others) + 1

    def _commands(self) -> list[str]:
        # Asking iptables-legacy about a table creates the table, so it is asked only if the table is in use already.
        commands = [f"{stem}-nft" for stem in _STEMS.values()]
        for family, stem in _STEMS.items():
            try:
                if "filter" in (self._proc / f"{family}_tables_names").read_text().split():
                    commands.append(stem + _LEGACY)
            except OSError:
                continue
        return commands


def _ours(rule: str) -> bool:
    return _OURS.fullmatch(rule.strip()) is not None


def _of_chain(listed: CompletedProcess[str]) -> list[str]:
    return [line for line in listed.stdout.splitlines() if line.startswith(f"-A {CHAIN}")]


def _change(command: str, *arguments: str) -> bool:
    """Run a command that changes the chain; True if it succeeded."""
    done = _run(command, *arguments)
    if done and done.returncode:
        log.warning("%s %s: %s", command, " ".join(arguments), done.stderr.strip())
    return done is not None and not done.returncode


def _run(command: str, *arguments: str) -> CompletedProcess[str] | None:
    """Return what the command did; None if it could not be run, or took too long."""
    try:
        return subprocess.run([command, "-w", "5", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s %s: %s", command, " ".join(arguments), error)
        return None
