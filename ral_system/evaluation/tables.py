"""Tables of an evaluation, printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console
from rich.table import Column, Table

from ral_system.evaluation.attention_record import Looking
from ral_system.evaluation.questions import Figures

_OF_LAYERS = ("visual_mass", "sink_mass", "visual_entropy_share", "evidence_mass", "pointing", "decay")
"""Figures that are printed of every layer; evaluation.json has all."""


def print_figures(title: str, found: Figures, columns: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Print a table of every figure, its interval, and its values in other columns."""
    more = columns or {}
    table = Table(Column(no_wrap=True), "value", "95 %", *more, title=title)
    for name, value in found.values.items():
        interval = _interval(found.intervals.get(name))
        others = (f"{column[name]:.3f}" if name in column else "" for column in more.values())
        table.add_row(name.removeprefix("eval/"), f"{value:.3f}", interval, *others)
    Console().print(table)


def print_parts(found: Figures, shown: float, parts: Mapping[str, Mapping[str, float]]) -> None:
    """Print the figures with parts of the pictures beside those with all of them."""
    title = f"with {shown:g} of the visual tokens, or the others"
    print_figures(title, replace(found, intervals={}), parts)


def print_looks(measured: Mapping[str, float], looking: Looking) -> None:
    """Print a table of where the model looks, if anything was measured, and one of its layers."""
    if measured:
        table = Table("", "value", "95 %", title="where it looks")
        for name, value in measured.items():
            table.add_row(name.removeprefix("looks/"), f"{value:.3f}", _interval(looking.intervals.get(name)))
        Console().print(table)
    if looking.by_layer:
        shown = [name for name in _OF_LAYERS if name in looking.by_layer]
        table = Table("layer", *shown, title="where it looks, layer by layer")
        of_layers = zip(*(looking.by_layer[name] for name in shown), strict=True)
        for layer, values in zip(looking.layers, of_layers, strict=True):
            table.add_row(str(layer), *(f"{value:.3f}" for value in values))
        Console().print(table)


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
