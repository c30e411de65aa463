"""Base chains that exist only while a set has elements, as nft's text: a feature without any costs no packet. Pure.

`sets.SetSpec.hooks` names those of a set. `nftables.table` adds a base chain before the first such element, in a
transaction of its own: without elements its rules match nothing. It removes it after the last one.

All but those of rates are before the chains of Docker and of other programs (priority filter), which see no packet that
these drop. Of two base chains with one priority, the kernel runs the one first that was added last: such two must not
depend on each other.
"""

from __future__ import annotations

from typing import NamedTuple

from plugin.nftables import sets

#: Before the chains `forward`, `input` and `output_filter`, which accept established packets at once.
_EARLY = "filter - 3"
#: After them: a packet that these three accept still meets the rules here. `forward` renews a quarantine before.
_LATE = "filter - 1"
#: After these: a packet that any of them drops does not count. `input_last` alone is later.
_LAST = "filter"
_NO_SYN = "ct state new tcp flags & (fin | syn | rst | ack) != syn"


class Hook(NamedTuple):
    """A base chain: netfilter's hook, its priority there, and its rules."""

    hook: str
    priority: str
    rules: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the chain."""
        return (f"type filter hook {self.hook} priority {self.priority}; policy accept;", *self.rules)


_LOADING = "meta nfproto @loading jump loading"
_BANNED = "meta nfproto @ban_families jump banned"
_NOT_LO = 'iifname "lo" accept'
#: By the names of the chains.
HOOKS = {
    sets.LOADING_HOOK: Hook("forward", _EARLY, (_LOADING,)),
    sets.LOADING_HOOK_HOST: Hook("input", _EARLY, (_NOT_LO, _LOADING)),
    sets.BAN_HOOK: Hook("forward", _EARLY, (_BANNED,)),
    sets.BAN_HOOK_HOST: Hook("input", _EARLY, (_NOT_LO, _BANNED)),
    # Early, so that an internal network's packets take no room in limits that all networks share.
    sets.INTERNAL_HOOK: Hook(
        "forward",
        _EARLY,
        (
            "iifname . oifname @same_bridge accept",
            "iifname @internal goto deny",
            "oifname @internal goto to_internal",
        ),
    ),
    sets.EGRESS_HOOK: Hook("forward", _LATE, ("iifname @egress_restricted goto egress",)),
    sets.EGRESS_HOOK_REPLIES: Hook(
        "forward", _LATE, (f"{_NO_SYN} oifname @egress_restricted iifname . oifname != @same_bridge goto deny",)
    ),
    sets.EGRESS_HOOK_HOST: Hook("input", _LATE, ("iifname @egress_restricted goto egress_to_host",)),
    # The host's programs may not reopen a flow that a container initiated and may not open any more.
    sets.EGRESS_HOOK_OUTPUT: Hook("output", _LATE, (f"{_NO_SYN} oifname @egress_restricted goto deny",)),
    sets.RATE_HOOK: Hook("forward", _LAST, ("goto rate_limit",)),
    sets.RATE_HOOK_HOST: Hook("input", _LAST, ("goto rate_limit_host",)),
}
