"""A table of a run's processes with their idle time and the peak memory of their calls."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def processes(summary: Mapping[str, Any]) -> str:
    """Return a section from `summary.json`; empty until the rl stage has ended."""
    idle, peaks = summary.get("idle_share") or {}, summary.get("peak_gib") or {}
    rows = "".join(_row(lane, idle.get(lane), peaks.get(lane) or {}) for lane in {**peaks, **idle})
    if not rows:
        return ""
    return (
        '<section id="processes"><h2>Processes of the RL stage</h2>'
        '<p class="lead">Memory is GPU memory for processes that use a GPU themselves, otherwise host '
        "memory. The ranks of an engine with tensor parallelism are separate processes and are not shown.</p>"
        '<div class="scroll"><table><thead><tr><th>Process</th><th>Idle</th><th>Peak memory by call</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _row(lane: str, idle: float | None, peaks: Mapping[str, float]) -> str:
    memory = ", ".join(f"{escape(call)} {gib:.3g} GiB" for call, gib in sorted(peaks.items(), key=lambda at: -at[1]))
    share = "" if idle is None else f"{idle:.0%}"
    return f"<tr><td>{escape(lane.replace('_', ' '))}</td><td>{share}</td><td>{memory}</td></tr>"
