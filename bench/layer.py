"""One layer: the term in its variants beside the layer's causal attention, by number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from bench import terms
from bench.measure import PeakMemory, available_bytes, in_child, reason, release, time_in_turns
from bench.plan import VARIANTS, Plan, Variant

Say = Callable[[str], None]


def measure_layer(plan: Plan, say: Say) -> list[dict[str, Any]]:
    """A record for every variant at every number of tokens, with raw times, peaks and reasons of failures."""
    records: list[dict[str, Any]] = []
    for tokens in plan.tokens:
        say(f"one layer, {tokens:,} tokens")
        found: dict[Variant, dict[str, Any]] = {
            variant: {"tokens": tokens, "variant": variant, "failure": _obstacle(plan, variant, tokens)}
            for variant in VARIANTS
        }
        for variant in _usable(found):
            for backward in (False, True):
                if found[variant]["failure"] is None:
                    figures, why = _memory(plan, tokens, variant, backward)
                    found[variant] |= {**(figures or {}), "failure": why}
        try:
            _time(plan, tokens, found)
        except Exception as error:  # even the inputs may not fit
            for variant in _usable(found):
                found[variant]["failure"] = f"inputs: {reason(error)}"
        release()
        for variant in VARIANTS:
            if why := found[variant]["failure"]:
                say(f"  {variant}: {why}")
        records += found.values()
    return records


def _usable(found: dict[Variant, dict[str, Any]]) -> list[Variant]:
    return [variant for variant, record in found.items() if record["failure"] is None]


def _obstacle(plan: Plan, variant: Variant, tokens: int) -> str | None:
    if why := terms.unavailable(variant, plan.device):
        return f"skipped: {why}"
    free = available_bytes(plan.device)
    needed = terms.eager_bytes(plan, tokens)
    if variant == "eager_full" and plan.device == "cpu" and free is not None and needed > free / 4:
        return (
            f"skipped: needs {needed / 2**30:.0f} GiB, more than a quarter of the {free / 2**30:.0f} GiB that are free"
        )
    return None


def _time(plan: Plan, tokens: int, found: dict[Variant, dict[str, Any]]) -> None:
    x = terms.make_inputs(plan, tokens)
    calls: dict[tuple[Variant, str], Callable[[], object]] = {}
    for variant in _usable(found):
        calls[variant, "forward_s"] = partial(terms.forward, variant, x)
        calls[variant, "forward_backward_s"] = partial(terms.forward_backward, variant, x)
    times, failures = time_in_turns(
        calls, plan.device, min_repeats=plan.min_repeats, max_repeats=plan.max_repeats, seconds=plan.seconds
    )
    for (variant, name), seconds in times.items():
        found[variant][name] = seconds
    for (variant, _), why in failures.items():
        found[variant]["failure"] = why


def _memory(plan: Plan, tokens: int, variant: Variant, backward: bool) -> tuple[dict[str, int] | None, str | None]:
    if plan.device == "cpu":
        return in_child(peaks, plan, tokens, variant, backward)
    try:
        return peaks(plan, tokens, variant, backward), None
    except Exception as error:
        return None, reason(error)
    finally:
        release()


def peaks(plan: Plan, tokens: int, variant: Variant, backward: bool) -> dict[str, int]:
    """Peak bytes of one variant beyond its inputs.

    Runs once before, so what libraries load or keep does not count; on CUDA at full size, since workspaces and the
    tuning of kernels depend on it, on CPU at a small one, since freed memory would be used again unseen.
    """
    x = terms.make_inputs(plan, tokens)
    before = x if plan.device == "cuda" else terms.make_inputs(replace(plan, rows=8), 64)
    (terms.forward_backward if backward else terms.forward)(variant, before)
    del before
    after_term: list[int] = []
    peak = PeakMemory(plan.device)
    if not backward:
        output = terms.forward(variant, x)
        found = {"forward_peak_bytes": peak.bytes()}
        del output
        return found
    terms.forward_backward(variant, x, lambda: after_term.append(peak.bytes()))
    found = {"forward_backward_peak_bytes": peak.bytes()}
    return found | ({"term_peak_bytes": after_term[0]} if after_term else {})
