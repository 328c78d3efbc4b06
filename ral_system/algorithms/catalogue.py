"""Every choice of the token side: name in the configuration, paper, formula, and when to use it.

`python -m bench.algorithms_table` writes docs/algorithms.md from it; a test compares it with the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a field."""

    name: str
    paper: str
    formula: str
    when: str


POLICY_LOSSES = (
    Choice("clip", "GRPO 2402.03300, PPO 1707.06347", "-min(r A, clip(r, 1-ε, 1+ε) A)", "The default, as in RAL."),
    Choice(
        "clip_higher",
        "DAPO 2503.14476",
        "as above, ε_high > ε_low",
        "Entropy falls too fast: the probability of rare tokens may rise further.",
    ),
    Choice(
        "dual_clip",
        "1912.09729",
        "-max(min(…), c A) where A < 0, c > 1",
        "Bad tokens that have become much more likely make the gradient explode.",
    ),
    Choice(
        "dppo_binary_tv",
        "DPPO 2602.04879",
        "-M sg(min(r, C)) A ln π, r = π/μ; M = 0 where π has moved in the direction of A and |μ - π| > δ, else 1",
        "Rollout and learner differ (bfloat16, stale weights), large vocabularies; no extra cost.",
    ),
    Choice(
        "dppo_binary_kl",
        "DPPO 2602.04879",
        "as above, with μ ln(μ/π) + (1-μ) ln((1-μ)/(1-π)) > δ",
        "As above, stricter on tokens that become unlikely.",
    ),
    Choice(
        "dppo_top_k_tv",
        "DPPO 2602.04879",
        "as above, with ½ Σ |μ - π| > δ over the rollout's top K tokens and the rest",
        "The distribution changes in tokens that were not sampled; the rollout reports 20 tokens per position.",
    ),
    Choice("dppo_top_k_kl", "DPPO 2602.04879", "as above, with Σ μ ln(μ/π) > δ", "As above, in nats."),
    Choice(
        "gspo",
        "GSPO 2507.18071",
        "-min(s A, clip(s, 1-ε_low, 1+ε_high) A), s = (π(y)/π_old(y))^(1/|y|)",
        "Mixture-of-experts models, long responses: ratios of single tokens are noise there.",
    ),
    Choice(
        "cispo",
        "MiniMax-M1 2506.13585",
        "-sg(clip(r, 1-ε_low, 1+ε_high)) A ln π",
        "Many updates per batch: rare but decisive tokens keep their gradient.",
    ),
    Choice("sapo", "SAPO 2511.20347", "-(4/τ) σ(τ (r - 1)) A", "The hard edge of a clip makes training unstable."),
    Choice("reinforce", "Williams 1992", "-r A", "A baseline: unbiased, without a trust region."),
    Choice(
        "reinforce_plain", "Williams 1992", "-A ln π", "One update per batch, or to measure the effect of the ratio."
    ),
)
ADVANTAGES = (
    Choice("grpo", "2402.03300", "(r - mean) / std of the group", "Groups with similar spread."),
    Choice("dr_grpo", "2503.20783", "r - mean", "Easy and hard questions should count less than others."),
    Choice("rloo", "2402.14740", "r - mean of the others", "Small groups: unbiased."),
    Choice(
        "reinforce_plus_plus", "2501.03262", "r - mean, normalised over the batch", "Groups with very different spread."
    ),
    Choice(
        "gdpo",
        "2601.05242",
        "Σ w (part - mean) / std of the group, normalised over the batch",
        "Several reward parts, and one would dominate the others.",
    ),
)
CORRECTIONS = (
    Choice("none", "", "1", "Engines agree exactly, or the loss is anchored on the rollout (DPPO)."),
    Choice("truncate", "TIS", "min(w, high), w = π_old/μ", "Bounded variance, little bias."),
    Choice("mask", "IcePop 2510.18855", "w inside [low, high], else 0", "Single tokens differ wildly."),
    Choice(
        "reject_sequence",
        "",
        "0 for sequences whose geometric mean of w is outside, else 1",
        "With sequence ratios (GSPO): drops rollouts that are far off as a whole.",
    ),
)
KL_ESTIMATORS = (
    Choice("k1", "Schulman 2020", "ln π - ln ref", "In the reward; in the loss its gradient is 0 on average."),
    Choice("k2", "Schulman 2020", "(ln π - ln ref)² / 2", "In the loss: the gradient of the KL itself."),
    Choice("k3", "Schulman 2020", "e^d - d - 1, d = ln ref - ln π", "Unbiased and never negative."),
)
ON_NEW_WEIGHTS = (
    Choice("finish", "", "wait for the end of the batch", "Batch k + N uses version k, so a run can be repeated."),
    Choice(
        "continue",
        "PipelineRL 2509.19128",
        "continue from the last token",
        "Long responses: their tokens come from newer weights.",
    ),
    Choice(
        "discard", "", "begin again with the same seed", "Fresh responses of one version; tokens are generated twice."
    ),
)
REDUCTIONS = (
    Choice("token_mean", "DAPO", "Σ / tokens", "Every token counts the same."),
    Choice("sequence_mean", "GRPO", "mean over sequences of the mean over tokens", "Every response counts the same."),
    Choice("sequence_sum", "", "Σ / sequences", "Long responses count more."),
    Choice("fixed_length", "Dr. GRPO 2503.20783", "Σ / (sequences · fixed_length)", "No bias towards any length."),
)
