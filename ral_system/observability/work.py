"""How fast learners work: tokens and floating-point operations, as executed and as if no prompt were shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H200 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16 products of a device per second, in 10^12, by what its name contains; the first entry counts.

NVIDIA's data sheets, whose figures with sparsity are twice these. H100 and H200 alone are the SXM modules.
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What one rank did in some updates. All but the last two add up, over updates and ranks."""

    seconds: float = 0.0
    tokens: int = 0
    unshared_tokens: int = 0
    """Tokens if every response had a prompt of its own, as in `unshared_flops`, where media are encoded in every
    pass."""
    distinct_tokens: int = 0
    """Tokens of all ranks' updates if each prompt and response passed once in each; counted by one rank."""
    filler_tokens: int = 0
    """Tokens of samples that passed in place of an empty micro-batch, and were not trained on."""
    encoder_passes: int = 0
    """Passes of the vision encoder over media since the work before, those of scoring with them."""
    media: int = 0
    """Media encoded in these passes."""
    flops: int = 0
    """The model's operations. A backward pass counts twice, recomputation not at all."""
    unshared_flops: int = 0
    peak_gib: float = 0.0
    """Memory at its highest in these updates: of the GPU, or on CPU of the process."""
    device: str = ""

    def __add__(self, other: Work) -> Work:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[:-2]}
        return Work(**added, peak_gib=max(self.peak_gib, other.peak_gib), device=other.device)


def meters(ranks: Sequence[Work]) -> dict[str, float]:
    """Metrics from the work of all ranks. Rates are of one rank, on average; empty without an update."""
    total = sum(ranks, Work())
    if not total.seconds:
        return {}
    rates = {"": total.flops / total.seconds / 1e12, "unshared_": total.unshared_flops / total.seconds / 1e12}
    found = {
        "learner/tokens_per_s": total.tokens / total.seconds,
        **{f"learner/{kind}tflops": rate for kind, rate in rates.items()},
        "learner/shared_tokens": 1 - total.tokens / total.unshared_tokens,
        "learner/duplicate_tokens": 1 - total.distinct_tokens / (total.tokens + total.filler_tokens),
        "learner/encoder_passes": float(total.encoder_passes),
        "learner/media_encoded": float(total.media),
        "learner/peak_gib": total.peak_gib,
    }
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in total.device]
    return found | {f"learner/{kind}mfu": rate / peaks[0] for kind, rate in rates.items() if peaks}
