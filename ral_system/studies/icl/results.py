"""What `ral-study icl` writes: tables for people (icl.md), every seed's figures for programs (icl.json), and charts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ral_system.report.curves import CurveRow, curves
from ral_system.report.svg import short
from ral_system.studies.icl.policy_gradient import Schedule
from ral_system.studies.icl.regression import Measured, Regression
from ral_system.studies.intervals import Interval, over_seeds

Curve = list[dict[str, float]]
"""One run of `policy_gradient.run`."""

_NAMES = {
    "self": "self-attention",
    "cross": "cross-attention",
    "within": "each modality by itself",
}


@dataclass(frozen=True, slots=True)
class Results:
    """Figures of all seeds, in the order of `seeds`."""

    seeds: tuple[int, ...]
    regression_settings: Regression
    schedule: Schedule
    regression: tuple[Measured, ...]
    policy_gradient: Mapping[str, tuple[Curve, ...]]
    """Curves by arm of `policy_gradient.ARMS`."""
    alone: Mapping[str, tuple[Curve, ...]]
    """Curves by arm of `policy_gradient.ALONE`."""


def write(results: Results, folder: Path) -> str:
    """Write icl.md, icl.json and three charts, and return the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = "\n\n".join(
        [
            "# Multimodal in-context regression",
            f"Seeds {', '.join(map(str, results.seeds))}. Brackets are 95 % intervals over them (Student's t). "
            "Means of excess risks are geometric, and their intervals those of the logarithm.",
            *regression_tables(results.regression),
            policy_table(results.policy_gradient),
            alone_table(results.alone),
        ]
    )
    folder.joinpath("icl.md").write_text(tables + "\n", encoding="utf-8")
    folder.joinpath("icl.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    folder.joinpath("icl_depth.svg").write_text(depth_chart(results.regression), encoding="utf-8")
    with_tokens = attention_chart("GRPO, and attention objectives beside it", results.policy_gradient)
    folder.joinpath("icl_attention.svg").write_text(with_tokens, encoding="utf-8")
    alone = attention_chart("Attention trained by its objective alone", results.alone)
    folder.joinpath("icl_alone.svg").write_text(alone, encoding="utf-8")
    return tables


def regression_tables(measured: Sequence[Measured]) -> list[str]:
    """Excess risk by depth and by number of examples, which is positive, and what cross-attention learned."""
    depths = list(measured[0].best_step)
    rows = []
    for name, of_first in measured[0].excess.items():
        rows.append(
            [_NAMES[name], *(_ratio(m.excess[name][d] for m in measured) if d in of_first else "" for d in depths)]
        )
    at_best = _mean(m.one_layer for m in measured)
    rows.append(["one layer at its best, closed form", at_best, *[""] * (len(depths) - 1)])
    rows.append(["alpha = -beta at its best, closed form", *(_mean(m.best_step[d] for m in measured) for d in depths)])
    for i, name in enumerate(("alpha", "beta")):
        rows.append([f"{name} learned", *(_mean(m.learned[d][i] for m in measured) for d in depths)])
    rows[-1][1] = "(not read)"
    by_depth = _table(["excess risk, infinite context", *(f"{d} layer{'s'[: d > 1]}" for d in depths)], rows)
    contexts = list(next(iter(measured[0].by_context.values())))
    rows = [
        [name, *(_ratio(m.by_context[name][n] for m in measured) for n in contexts)] for name in measured[0].by_context
    ]
    return [by_depth, _table(["excess risk", *(f"{n} examples" for n in contexts)], rows)]


def policy_table(arms: Mapping[str, Sequence[Curve]]) -> str:
    """Tabulate where every arm ended, and differences to GRPO paired by seed."""
    rows = []
    for name, runs in arms.items():
        differences = ["", ""]
        if name != "GRPO":
            pairs = list(zip(runs, arms["GRPO"], strict=True))
            differences = [
                _at(run[-1]["reward"] - base[-1]["reward"] for run, base in pairs),
                _at(_over_training(run) - _over_training(base) for run, base in pairs),
            ]
        ends = [_at(run[-1][figure] for run in runs) for figure in ("reward", "distance", "clear", "noisy")]
        kappa = _mean(statistics.fmean(point["contrast"] for point in run[1:]) for run in runs)
        rows.append([name, ends[0], *differences, *ends[1:], kappa])
    best = _mean(run[-1]["best_reward"] for run in arms["GRPO"])
    start = _mean(run[0]["reward"] for run in arms["GRPO"])
    header = ["", "reward at the end", "minus GRPO", "minus GRPO, mean over training"]
    header += ["JSD to the right attention", "clear modality", "noisy modality", "kappa"]
    return _table(header, rows) + f"\n\nThe reward starts at {start}; the right attention gets {best}."


def alone_table(arms: Mapping[str, Sequence[Curve]]) -> str:
    """Tabulate every arm's final distance from the right attention, and differences to its permuted control by seed."""
    rows = []
    for name, runs in arms.items():
        cells = [_at(run[-1][figure] for run in runs) for figure in ("reward", "clear", "noisy")]
        control = arms.get(f"{name}, permuted")
        for figure in ("reward", "clear", "noisy"):
            pairs = zip(runs, control, strict=True) if control else ()
            cells.append(_at(run[-1][figure] - base[-1][figure] for run, base in pairs) if control else "")
        rows.append([name, *cells])
    start = {figure: _mean(run[0][figure] for run in arms["told"]) for figure in ("reward", "clear", "noisy")}
    header = ["attention by its objective alone", "reward at the end", "JSD, clear modality", "JSD, noisy modality"]
    header += ["reward minus control", "clear minus control", "noisy minus control"]
    return _table(header, [["at the start", *start.values(), "", "", ""], *rows])


def depth_chart(measured: Sequence[Measured]) -> str:
    """log10 of the excess risk over depth, trained and at the best step in closed form."""
    groups = {
        _NAMES[name]: [[(d, math.log10(e)) for d, e in m.excess[name].items()] for m in measured]
        for name in measured[0].excess
    }
    groups["best alpha = -beta"] = [[(d, math.log10(e)) for d, e in m.best_step.items()] for m in measured]
    row = CurveRow("log10 of the excess risk over the Bayes predictor", groups)
    return curves("Depth, with infinite context", [row], "layers")


def attention_chart(title: str, arms: Mapping[str, Sequence[Curve]]) -> str:
    """Reward and distance to the right attention over the steps."""
    figures = {
        "reward": "expected reward, held-out prompts",
        "distance": "JSD to the right attention, as the policy looks",
        "clear": "JSD to the right attention, clear modality",
        "noisy": "JSD to the right attention, noisy modality",
    }
    rows = [
        CurveRow(label, {name: [_points(run, figure) for run in runs] for name, runs in arms.items()})
        for figure, label in figures.items()
    ]
    return curves(title, rows)


def _points(run: Curve, figure: str) -> list[tuple[int, float]]:
    return [(int(point["step"]), point[figure]) for point in run]


def _over_training(run: Curve) -> float:
    return statistics.fmean(point["reward"] for point in run[1:])


def _at(values: Iterable[float]) -> str:
    return _written(over_seeds(list(values)), float)


def _ratio(values: Iterable[float]) -> str:
    """Geometric mean of positive values, with the interval of the mean logarithm."""
    return _written(over_seeds([math.log(value) for value in values]), math.exp)


def _written(found: Interval, scale: Callable[[float], float]) -> str:
    ends = (
        "" if found.low is None or found.high is None else f" [{short(scale(found.low))}, {short(scale(found.high))}]"
    )
    return short(scale(found.mean)) + ends


def _mean(values: Iterable[float]) -> str:
    return short(statistics.fmean(values))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
