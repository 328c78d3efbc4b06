"""A table of the alarms that rang in the RL stage, with the remedy of each."""

from __future__ import annotations

from html import escape

from ral_system.alarms.known import ALARMS, Alarm
from ral_system.report.load import RunData
from ral_system.report.svg import short


def alarms(run: RunData) -> str:
    """Return a section with a row per alarm that rang; empty if none did."""
    rows = "".join(_row(run, alarm) for alarm in ALARMS)
    if not rows:
        return ""
    return (
        '<section id="alarms"><h2>Alarms of the RL stage</h2>'
        '<p class="lead">docs/troubleshooting.md explains each figure and its remedies.</p>'
        '<div class="scroll"><table><thead><tr><th>Alarm</th><th>Steps</th><th>Value</th><th>Remedy</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _row(run: RunData, alarm: Alarm) -> str:
    rang = [step for step, value in run.points("rl", f"alarm/{alarm.name}") if value == 1]
    if not rang:
        return ""
    known = [value for step, value in run.points("rl", alarm.figure) if step <= rang[-1] and value is not None]
    limit = run.setting("alarms", alarm.name)
    value = short(known[-1]) if known else "n/a"
    if isinstance(limit, int | float):
        value += f", limit {limit:g}"
    return (
        f'<tr data-alarm="{alarm.name}"><td><b>{alarm.name}</b>: {escape(alarm.what)}</td>'
        f"<td>{len(rang)}, from {rang[0]} to {rang[-1]}</td><td>{value}</td><td>{escape(alarm.remedy)}</td></tr>"
    )
