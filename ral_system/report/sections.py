"""The charts of the report, in order, and their metrics. A chart without recorded values is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

from ral_system.algorithms.divergences import Divergence
from ral_system.config.choices import STAGE_TITLES, Stage, SupervisedStage
from ral_system.errors import ConfigError
from ral_system.registry import DIVERGENCES
from ral_system.report.load import RunData
from ral_system.report.series import Chart, Interval, Series, Unit

_ANCHORS = {"old": "rollout policy", "reference": "reference policy", "ema": "average policy"}
_MAX_LAYERS = 7  # of the phase stack; the smallest ones share the last colour


def sections(run: RunData) -> list[tuple[str, list[Chart]]]:
    """Return titled groups of charts, from the most important figures to those that help to find a problem."""
    return [
        ("Does it learn?", _learning(run)),
        ("What is rewarded?", _rewarded(run)),
        ("Attention and policy", [*_attention(run), *_distillation(run), *_policy(run)]),
        ("Trust", _trust(run)),
        ("Speed and memory", _speed(run)),
        ("Supervised stages", _supervised(run)),
    ]


def _learning(run: RunData) -> list[Chart]:
    kinds = [(key, key.removeprefix("eval/accuracy/")) for key in run.keys("rl", "eval/accuracy/")]
    parts = [(f"reward/{name}", name) for name in ("total", "correctness", "format", "visual")]
    note = f"Greedy answers to questions that are not trained on. {_asked(run, 'rl')}".strip()
    return [
        _rl(run, "accuracy", "Held-out accuracy", note, [("eval/accuracy", "accuracy")], unit="percent", top=1.0),
        _rl(run, "accuracy-by-kind", "Held-out accuracy by kind", "Accuracy of each kind of question.",
            kinds, unit="percent", top=1.0),
        _rl(run, "blind", "Effect of pictures", "Accuracy with black pictures, and the gain from the real ones.",
            [("eval/accuracy_black", "black"), ("eval/blind_gap", "gain")], unit="percent", top=1.0),
        _rl(run, "reward", "Reward", "Mean over the step's sampled responses, by part.", parts, top=1.0),
    ]  # fmt: skip


def _rewarded(run: RunData) -> list[Chart]:
    shares, correlations = (
        [(key, key.removeprefix(prefix)) for key in run.keys("rl", prefix)]
        for prefix in ("health/part_share/", "health/length_corr/")
    )
    return [
        _rl(run, "part-share", "Variance of rewards by part",
            "Share of each part in the variance of rewards within a group, mean over groups.", shares, unit="percent"),
        _rl(run, "aux-only", "Groups with the same correctness",
            "Share of groups whose rewards differ only in auxiliary parts.",
            [("health/aux_only", "groups")], unit="percent", limit=_alarm(run, "aux_only")),
        _rl(run, "length-corr", "Reward and length", "Correlation of each part with response length, within groups.",
            correlations),
    ]  # fmt: skip


def _alarm(run: RunData, name: str) -> tuple[str, float] | None:
    """Return the limit of an alarm for a chart; None if it has none."""
    limit = run.setting("alarms", name)
    return ("alarm", float(limit)) if isinstance(limit, int | float) and limit > 0 else None


def _attention(run: RunData) -> list[Chart]:
    divergence, unit = _divergence(run, "attention")
    anchor = run.setting("algorithm", "attention", "anchor") or "old"
    first = next((value for _, value in run.points("rl", "attention/entropy") if value is not None), None)
    share = _alarm(run, "attention_entropy")
    alarm = ("alarm", first * share[1]) if first is not None and share else None
    masses = [(f"attention/{name}_mass", name) for name in ("visual", "system", "text", "generated", "sink")]
    media = [key for key in run.keys("rl", "attention/image_") + run.keys("rl", "attention/frame_")
             if key.endswith("_mass")]  # fmt: skip
    return [
        _rl(run, "attention-divergence", "Attention divergence",
            f"{divergence} between the rows of the policy and the {_ANCHORS.get(anchor, anchor)}, by sign of A.",
            _by_sign("divergence")[1:], unit=unit),
        _rl(run, "visual-mass", "Visual mass", "Share of attention on pictures and videos, by sign of advantage.",
            _by_sign("visual_mass"), unit="percent"),
        _rl(run, "attention-mass", "Attention by target", "Shares of attention. Sink: the first four tokens.",
            masses, unit="percent"),
        _rl(run, "attention-entropy", "Attention entropy",
            "Mean over rows; low entropy means that rows look at few keys.",
            _by_sign("entropy"), unit="nats", limit=alarm),
        _rl(run, "visual-entropy", "Entropy over pictures",
            "Entropy of the attention within visual tokens, by sign of advantage; 0 for a row on a single token.",
            _by_sign("visual_entropy"), unit="nats"),
        _rl(run, "evidence-mass", "Mass on evidence",
            "Share of the attention on pictures that is on the boxes that show the answer, by sign of advantage.",
            [*_by_sign("evidence_mass"), ("attention/evidence_area", "uniform attention")], unit="percent", top=1.0),
        _rl(run, "pointing", "Pointing", "Share of rows whose most attended visual token shows the answer.",
            _by_sign("pointing"), unit="percent", top=1.0),
        _rl(run, "decay", "Attention on pictures along the response",
            "Visual mass in the second half of a response divided by that in the first.", _by_sign("decay")),
        _rl(run, "vas", "Visual attention score",
            "Visual mass divided by system mass, by sign of advantage.", _by_sign("vas")),
        _rl(run, "media-mass", "Mass by picture", "Share of attention on each picture or video frame.",
            [(key, key.removeprefix("attention/").removesuffix("_mass").replace("_", " ")) for key in media]
            if len(media) > 1 else [], unit="percent"),
        _rl(run, "gradient-share", "Attention's share of the gradient",
            "Measured at the queries of the attention rows.",
            [("attention/gradient_share", "mean"), ("attention/gradient_share_max", "largest")], unit="percent"),
        _rl(run, "contrast", "Attention contrast", "Near 1, right and wrong responses look at the same places.",
            [("attention/contrast", "contrast")], limit=("no signal", 1.0)),
        _rl(run, "perception-kl", "Dependence on pictures",
            "k3 between the policy and its blinded view, mean over tokens.",
            [("perception/kl", "all tokens"), ("perception/kl_kept", "trained tokens")], unit="nats"),
        _rl(run, "perception-clamped", "Tokens at the bound",
            "Share of tokens at the bound on k3; they get no gradient.",
            [("perception/clamped", "tokens")], unit="percent", limit=_alarm(run, "perception_clamped")),
        _rl(run, "perception-similarity", "Similarity to pictures",
            "Mean cosine similarity between the hidden states of tokens and of pictures.",
            [("perception/similarity", "cosine")]),
        _rl(run, "advantage-factor", "Factors on the advantage",
            "Larger for responses, or tokens, that depend more on their pictures.",
            [("perception/advantage_factor_max", "largest, responses"), ("perception/token_factor", "mean, tokens")],
            limit=_alarm(run, "advantage_factor")),
    ]  # fmt: skip


def _distillation(run: RunData) -> list[Chart]:
    of_tokens, unit_of_tokens = _divergence(run, "distillation", "tokens")
    of_rows, unit_of_rows = _divergence(run, "distillation", "attention")
    return [
        _rl(run, "token-distillation", "Token distillation",
            f"{of_tokens} between the next-token distributions of student and teacher.",
            [("distillation/token_divergence", "divergence")], unit=unit_of_tokens),
        _rl(run, "attention-distillation", "Attention distillation",
            f"{of_rows} between the attention rows of student and teacher.",
            [("distillation/attention_divergence", "divergence")], unit=unit_of_rows),
    ]  # fmt: skip


def _divergence(run: RunData, *part: str) -> tuple[str, Unit]:
    """Return title and unit of the divergence that a part of the algorithm uses; general ones if the run does not
    record it, or if its package is not installed here."""
    try:
        found: Divergence = DIVERGENCES.get(str(run.setting("algorithm", *part, "divergence")))
    except ConfigError:
        return "Divergence", "number"
    return found.title, found.unit


def _by_sign(name: str) -> list[tuple[str, str]]:
    suffixes = (("", "all"), ("_positive", "A > 0"), ("_negative", "A < 0"))
    return [(f"attention/{name}{suffix}", label) for suffix, label in suffixes]


def _policy(run: RunData) -> list[Chart]:
    return [
        _rl(run, "kl", "KL to the reference", "Distance of the policy from the reference policy.",
            [("policy/kl", "KL")], unit="nats"),
        _rl(run, "entropy", "Entropy", "Entropy of the next-token distribution; near 0, sampling no longer explores.",
            [("policy/entropy", "entropy")], unit="nats"),
        _rl(run, "clip-fraction", "Clip fraction", "Share of tokens whose gradient the loss limits.",
            [("policy/clip_fraction", "clipped")], unit="percent"),
        _rl(run, "grad-norm", "Gradient norm", "Norm before clipping.", [("learner/grad_norm", "norm")]),
    ]  # fmt: skip


def _trust(run: RunData) -> list[Chart]:
    limit = run.setting("rollout", "log_prob_gate", "token")
    bounds = (("max", "max"), ("p999", "99.9 %"), ("mean", "mean"))
    gap = [(f"gate/log_prob_diff_{key}", label) for key, label in bounds]
    return [
        _rl(run, "log-prob-diff", "Log-prob mismatch",
            "Difference between rollout engine and learner at the same weights.",
            gap, unit="nats", log=True, limit=("limit", float(limit)) if isinstance(limit, int | float) else None),
        _rl(run, "no-verdict", "Responses without a verdict",
            "Their advantage is 0. The rollouts below give the reasons.",
            [(key, label) for key, label in (("reward/timeouts", "timeout"), ("reward/errors", "error"))
             if any(value for _, value in run.points("rl", key))]),
        _rl(run, "response-length", "Response length", "Mean over responses, in tokens.",
            [("rollout/length_mean", "tokens")]),
    ]  # fmt: skip


def _speed(run: RunData) -> list[Chart]:
    return [
        _phases(run),
        _rl(run, "device-tokens-per-s", "Tokens per second and device",
            "Prompts and responses trained on, over the whole step and all its GPUs.",
            [("step/tokens_per_s_per_device", "tokens/s")]),
        _rl(run, "tokens-per-s", "Generated tokens per second", "Sum over all rollout engines.",
            [("rollout/tokens_per_s", "tokens/s")]),
        _rl(run, "first-token", "Time to the first token", "Mean over responses, with the wait in the engine's queue.",
            [("rollout/first_token_s", "first token")], unit="seconds"),
        _rl(run, "trained-per-s", "Trained tokens per second", "Of one learner rank; a prompt counts once per pass.",
            [("learner/tokens_per_s", "tokens/s")]),
        _compute(run),
        _rl(run, "shared-tokens", "Prompts shared in updates", "Tokens saved, and tokens that passed more than once.",
            [("learner/shared_tokens", "saved"), ("learner/duplicate_tokens", "duplicate")], unit="percent"),
        _rl(run, "encoder", "Vision encoder of the learner", "Passes in a step, and pictures and videos in them.",
            [("learner/encoder_passes", "passes"), ("learner/media_encoded", "media")]),
        _memory(run),
    ]  # fmt: skip


def _compute(run: RunData) -> Chart:
    """A share of the device's peak where that is known, otherwise TFLOP/s."""
    labels = (("", "as executed"), ("unshared_", "as if no prompt were shared"))
    mfu, tflops = ([(f"learner/{kind}{name}", label) for kind, label in labels] for name in ("mfu", "tflops"))
    note = "In updates, of one rank. Backward passes count twice, recomputation not at all."
    if any(run.points("rl", key) for key, _ in mfu):
        return _rl(run, "compute", "Learner MFU", note, mfu, unit="percent")
    return _rl(run, "compute", "Learner TFLOP/s", note, tflops)


def _memory(run: RunData) -> Chart:
    """The most of each role's calls."""
    roles: dict[str, dict[int, float | None]] = {}
    for key in run.keys("rl", "memory/"):
        most = roles.setdefault(key.split("/")[1], {})
        for step, value in run.points("rl", key):
            known = [v for v in (value, most.get(step)) if v is not None]
            most[step] = max(known) if known else None
    series = [Series(f"memory/{role}", role, sorted(most.items()), i) for i, (role, most) in enumerate(roles.items())]
    note = "The most that a process of the role held in a step: of its GPU, or of the process."
    return Chart("memory", "Peak memory by role", note, series, unit="GiB")


def _supervised(run: RunData) -> list[Chart]:
    return [
        _stages(run, "supervised-loss", "Loss", "Negative log-likelihood per token.", "supervised/loss", "nats"),
        _stages(run, "supervised-token-accuracy", "Token accuracy",
            "Share of next tokens that are predicted correctly, on training batches.",
                "supervised/token_accuracy", "percent", 1.0),
        _stages(run, "supervised-accuracy", "Held-out score",
                f"Greedy answers; the stage ends at its target score. {_asked(run, 'sft')}".strip(),
                "eval/accuracy", "percent", 1.0),
        _stages(run, "supervised-grad-norm", "Gradient norm", "Norm before clipping.", "learner/grad_norm", "number"),
    ]  # fmt: skip


def _rl(
    run: RunData,
    chart: str,
    title: str,
    note: str,
    keys: list[tuple[str, str]],
    unit: Unit = "number",
    log: bool = False,
    top: float | None = None,
    limit: tuple[str, float] | None = None,
) -> Chart:
    recorded = [(key, label) for key, label in keys if run.points("rl", key)]
    series = [
        Series(key, label, run.points("rl", key), i, _intervals(run, "rl", key))
        for i, (key, label) in enumerate(recorded)
    ]
    return Chart(chart, title, note, series, unit=unit, log=log, top=top, limit=limit)


def _stages(run: RunData, chart: str, title: str, note: str, key: str, unit: Unit, top: float | None = None) -> Chart:
    series = [
        Series(f"{stage}:{key}", STAGE_TITLES[stage], run.points(stage, key), i, _intervals(run, stage, key))
        for i, stage in enumerate(get_args(SupervisedStage))
    ]
    return Chart(chart, title, note, series, unit=unit, top=top, axis="step")


def _intervals(run: RunData, stage: Stage, key: str) -> Mapping[int, Interval]:
    """Return 95 % intervals of held-out accuracy by step; none for other metrics."""
    if key != "eval/accuracy":
        return {}
    asked = dict(run.points(stage, "eval/questions"))
    return {
        step: Interval(*wilson(share, count), f"{count:.0f} questions")
        for step, share in run.points(stage, key)
        if share is not None and (count := asked.get(step))
    }


def _asked(run: RunData, stage: Stage) -> str:
    """Describe the error bars and the number of questions."""
    counts = sorted({int(count) for _, count in run.points(stage, "eval/questions") if count})
    if not counts:
        return ""
    of = " or ".join(map(str, counts)) if len(counts) < 3 else f"{counts[0]} to {counts[-1]}"
    return f"Bars: 95\u00a0% intervals over {of} questions."


def wilson(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927) of the share of right answers to `count` independent questions."""
    share = min(max(share, 0.0), 1.0)
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _phases(run: RunData) -> Chart:
    keys = [key for key in run.keys("rl", "time/") if key.endswith("_s")]
    spent = {key: sum(value or 0.0 for _, value in run.points("rl", key)) for key in keys}
    large = sorted(keys, key=lambda key: -spent[key])[:_MAX_LAYERS]
    series = [
        Series(key, key.removeprefix("time/").removesuffix("_s").replace("_", " "), run.points("rl", key), i)
        for i, key in enumerate(key for key in keys if key in large)
    ]
    rest: dict[int, float | None] = {}
    for key in (key for key in keys if key not in large):
        for step, value in run.points("rl", key):
            rest[step] = (rest.get(step) or 0.0) + (value or 0.0)
    if rest:
        series.append(Series("time/other_s", "other", sorted(rest.items()), _MAX_LAYERS))
    note = "Wall time of a step by phase; the legend shows means."
    return Chart("phase-time", "Time per step", note, series, kind="stack", unit="seconds")
