"""Targets for the cost of the term, and whether the records meet them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Any

from bench.plan import LEARNER_LAYERS, Variant
from ral_system.config.choices import Device

COMPUTED = f"computed_for_{LEARNER_LAYERS}_layers"
_MIB = 2**20
_GROWTH = 2.2
"""Most that memory may grow when the tokens double."""


@dataclass(frozen=True, slots=True)
class Records:
    """Everything measured, with the questions that targets and plots ask of it."""

    layer: list[dict[str, Any]]
    stack: list[dict[str, Any]]

    def one(self, variant: Variant, tokens: int) -> dict[str, Any]:
        """The record of a variant at a number of tokens, empty where there is none."""
        return next((r for r in self.layer if r["variant"] == variant and r["tokens"] == tokens), {})

    def seconds(self, variant: Variant, tokens: int, name: str = "forward_backward_s") -> float | None:
        """Return the median time."""
        return statistics.median(times) if (times := self.one(variant, tokens).get(name)) else None

    def ratio(self, variant: Variant, to: Variant, tokens: int) -> float | None:
        """Return the ratio of median forward and backward times."""
        part, whole = self.seconds(variant, tokens), self.seconds(to, tokens)
        return None if part is None or whole is None else part / whole

    def peak(self, variant: Variant, tokens: int, name: str = "forward_backward_peak_bytes") -> int | None:
        """Return the peak bytes of forward and backward."""
        return self.one(variant, tokens).get(name)

    def tokens(self) -> list[int]:
        """Numbers of tokens that were measured, ascending."""
        return sorted({r["tokens"] for r in self.layer})


def judge(records: Records, device: Device, *, quick: bool = False) -> list[dict[str, Any]]:
    """Every target with its value, `met`, `missed` or `not measured`; nothing is measured by a quick run's sizes."""
    gpu, cpu = device == "cuda" and not quick, device == "cpu" and not quick
    at = 16384
    fused = records.one("triton", at)
    return [
        _target(
            f"GPU: triton term / sdpa, forward + backward, {at:,} tokens",
            0.25,
            gpu,
            records.ratio("triton", "sdpa", at),
        ),
        _target(
            f"GPU: triton term / learner step of {LEARNER_LAYERS} layers (computed), {at:,} tokens",
            0.01,
            gpu,
            _stack(records, at, "term_share_of_step", "triton"),
        ),
        _target(
            f"GPU: triton term's own peak memory beside the record, MiB, {at:,} tokens",
            64,
            gpu,
            _mib(fused.get("term_peak_bytes")),
            note=f"with autograd's gradient of all queries: {_figure(_mib(records.peak('triton', at)))} MiB",
        ),
        _target(
            f"GPU: a step's peak memory with the term, less that without, MiB, {at:,} tokens",
            64,
            gpu,
            _mib(_measured(records, at, "extra_peak_bytes")),
        ),
        _target(
            f"GPU: growth of the term's own memory per doubling, {at:,} to 131,072 tokens",
            _GROWTH,
            gpu,
            _growth(records, "triton", [t for t in records.tokens() if t >= at], 131072, "term_peak_bytes"),
        ),
        _target(
            "CPU: chunked / dense, forward + backward, worst from 2,048 tokens",
            1.0,
            cpu,
            _worst(
                lambda tokens: records.ratio("chunked", "dense", tokens), [t for t in records.tokens() if t >= 2048]
            ),
        ),
        _target(
            "CPU: growth of chunked's peak memory per doubling, worst",
            _GROWTH,
            cpu,
            _growth(records, "chunked", records.tokens()),
        ),
        _target(
            f"scoring / forward pass of {LEARNER_LAYERS} layers (computed), worst",
            0.05,
            gpu or cpu,
            _worst(
                lambda tokens: _stack(records, tokens, "scoring_share_of_log_prob_pass"),
                [r["tokens"] for r in records.stack],
            ),
            note="measured: "
            + ", ".join(
                f"{_figure(r.get('measured', {}).get('scoring_share_of_log_prob_pass'))} of {r['layers']} layers "
                f"at {r['tokens']:,}"
                for r in records.stack
            ),
        ),
    ]


def _target(name: str, limit: float, applies: bool, value: float | None, note: str = "") -> dict[str, Any]:
    if not applies or value is None:
        return {"target": name, "limit": limit, "value": None, "status": "not measured", "note": ""}
    return {
        "target": name,
        "limit": limit,
        "value": value,
        "status": "met" if value <= limit else "missed",
        "note": note,
    }


def _stack(records: Records, tokens: int, name: str, backend: str | None = None) -> float | None:
    found = (r for r in records.stack if r["tokens"] == tokens and backend in (None, r["backend"]))
    return next(found, {}).get(COMPUTED, {}).get(name)


def _measured(records: Records, tokens: int, name: str) -> int | None:
    found = (r for r in records.stack if r["tokens"] == tokens and r["backend"] == "triton" and "measured" in r)
    return next((r["measured"][name] for r in found), None)


def _growth(
    records: Records, variant: Variant, tokens: list[int], up_to: int = 0, name: str = "forward_backward_peak_bytes"
) -> float | None:
    """Largest growth of peak memory per doubling between neighbours; None if a size, or the last asked for, lacks."""
    known = [(t, peak) for t in tokens if (peak := records.peak(variant, t, name))]
    if len(known) < max(2, len(tokens)) or known[-1][0] < up_to:
        return None
    return max((b[1] / a[1]) ** (1 / log2(b[0] / a[0])) for a, b in pairwise(known))


def _worst(of: Callable[[int], float | None], tokens: list[int]) -> float | None:
    """Return the largest value, or None if any is unknown."""
    values = [of(t) for t in tokens]
    known = [v for v in values if v is not None]
    return max(known) if known and len(known) == len(values) else None


def _mib(count: int | None) -> float | None:
    return None if count is None else count / _MIB


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
