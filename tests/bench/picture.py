"""Draw what a packet costs against the number of containers: docs/performance.svg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.rows import PEERS, PICTURED

#: The paths of this run, with their colours; the compared firewalls are grey.
_PATHS: Mapping[str, tuple[str, str]] = {
    "fw": ("docker-fw network", "tab:blue"),
    "protected": ("Docker's bridge, protected by docker-fw", "tab:green"),
    "docker": ("Docker's bridge without docker-fw", "tab:orange"),
    "tracked": ("connection tracking and one accept", "tab:red"),
}
_MARKS = "sD^v"
_TICKS = {1: "1", 200: "200", 10_000: "10k", 50_000: "50k"}
Points = Sequence[tuple[float, float]]


def costs(curves: Mapping[str, Sequence[Sequence[float]]], path: str, kind: str) -> tuple[Points, Points]:
    """Return the costs of a path, the rule-free path's being 1: on real engines, and beside simulated crowds.

    A simulated crowd's is relative to one endpoint, so it continues the cost of one container.
    """
    real = sorted((count, 1 / ratio) for count, ratio in curves.get(f"{path}, {kind}", ()))
    beside = sorted((count, ratio) for count, ratio in curves.get(f"simulated {path}, {kind}", ()))
    one = next((cost for count, cost in real if count == 1), None)
    return real, [(count, one / ratio) for count, ratio in beside] if one else []


def draw(curves: Mapping[str, Sequence[Sequence[float]]], path: Path) -> None:
    """Draw a panel for each kind of packets, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same drawing gives the same file, and its text stays text.
    with mpl.rc_context({"svg.hashsalt": "docker-fw", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots(1, len(PICTURED), sharey=True)
        for axis, kind in zip(axes, PICTURED, strict=True):
            _panel(axis, curves, kind)
        axes[0].set_ylabel("CPU time (a host without any rule = 1)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axis: Any, curves: Mapping[str, Sequence[Sequence[float]]], kind: str) -> None:
    for path, (name, colour) in _PATHS.items():
        real, simulated = costs(curves, path, kind)
        if real:
            axis.plot(*zip(*real, strict=True), "o-", color=colour, label=name)
        if real and simulated:
            style = {"color": colour, "markerfacecolor": "white", "markevery": range(1, 1 + len(simulated))}
            axis.plot(*zip(real[-1], *simulated, strict=True), "o--", **style)
    for peer, mark in zip(PEERS, _MARKS, strict=True):
        points = [(count, 1 / ratios[PICTURED.index(kind)]) for count, ratios in peer.ratios.items()]
        axis.plot(*zip(*points, strict=True), f"{mark}-", color="grey", label=f"{peer.name} (before)")
    axis.set_title(kind)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks(list(_TICKS), list(_TICKS.values()))
    axis.set_xlim(0.8, 80_000)
    axis.set_ylim(bottom=0)
    axis.minorticks_off()
    axis.grid(visible=True, alpha=0.3)
    axis.set_xlabel("containers")
