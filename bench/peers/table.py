"""Figures of the rounds, and the table that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

PEER = "trl"
NAMES = {"trl": "TRL", "local": "ral_system, cluster=local", "ray": "ral_system, cluster=ray"}
PHASES = ("data_s", "rollout_s", "score_s", "update_s")

HELD_EQUAL = (
    "weights to start from, prompts and their order, pictures",
    "responses per prompt, longest response, temperature, tokens that are never sampled",
    "optimiser updates per batch and responses in each, learning rate, Adam's betas, gradient norm",
    "reward (share of a response's words with an even number of letters), KL to a reference (none unless --kl)",
    "float32, CPU, no gradient checkpointing, OMP_WAIT_POLICY=PASSIVE, torch and transformers",
)
NOT_HELD_EQUAL = (
    "ral_system has the attention term, checks log-probs and published weights, and writes attention metrics; "
    "TRL does nothing of this",
    "ral_system measures the attention term's share of the gradient at every tenth version, from 0 on: one more "
    "forward pass and two partial backward passes per update. Version 0 is the first batch, which is not counted, and "
    "version 10 the last of ten; with fewer batches no counted one has it",
    "ral_system draws its pictures and encodes its videos while it trains; TRL reads them from PNG files",
    "ral_system verifies rewards in a process of its own; TRL calls the function",
    "each side batches as it does by default: ral_system by its configuration; TRL generates all responses at once and "
    "takes --peer-micro-batch sequences through the model",
    "videos: TRL has no videos and reads each pair of frames as a picture, which is as many visual tokens and patches, "
    "and two markers more for each picture",
    "cluster=ray uses two vLLM engines and two DeepSpeed ranks; TRL generates with transformers in its only process",
)


def sides_of(round_index: int, sides: Sequence[str]) -> list[str]:
    """Return the order in which sides take their turns: every second round is reversed."""
    return list(sides) if round_index % 2 == 0 else list(reversed(sides))


def seconds(batches: Sequence[Mapping[str, float]], key: str = "seconds") -> float:
    """Mean over the batches of a process after the first, which warms up."""
    return mean(batch[key] for batch in batches[1:])


def ratios(rounds: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    """Return a side's speed relative to the peer in each round."""
    return [seconds(one[PEER]["batches"]) / seconds(one[side]["batches"]) for one in rounds]


def table(workloads: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for every side of every workload; medians over rounds of means over batches."""
    rows = [
        "| workload | | s per batch | data / rollout / score / update | tokens | in each round | × as fast as TRL |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in workloads.items():
        rounds = found["rounds"]
        for side in sorted((side for side in rounds[0] if side in NAMES), key=list(NAMES).index):
            of_side = [one[side]["batches"] for one in rounds]
            each = [seconds(batches) for batches in of_side]
            phases = " / ".join(f"{median(seconds(b, phase) for b in of_side):.2f}" for phase in PHASES)
            lengths = [median(seconds(b, key) for b in of_side) for key in ("prompt_tokens", "response_tokens")]
            factor = "" if side == PEER else _factor(ratios(rounds, side))
            in_rounds = ", ".join(f"{value:.2f}" for value in each)
            cells = (
                name,
                NAMES[side],
                f"{median(each):.2f}",
                phases,
                f"{lengths[0]:.0f} + {lengths[1]:.0f}",
                in_rounds,
                factor,
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def caption(found: Mapping[str, Any]) -> str:
    """Describe the figures, what was held equal, and what was not."""
    shape, threads = found["shape"], found["threads"]
    of_threads = ", ".join(f"{NAMES[side]}: {count}" for side, count in threads.items())
    return "\n".join(
        (
            f"A batch: {shape['prompts']} prompts × {shape['completions']} responses and {shape['updates']} updates. "
            f"Each side is a process of {shape['batches']} + 1 batches; the first is not counted. Sides take "
            "turns; medians over rounds. Seconds run from batch to batch; what the phases leave is publishing, metrics "
            "and the like. TRL's data include its logging. Tokens: prompt + response, means.",
            f"Threads per process: {of_threads}. {found['cores']} cores, {found['cpu']}; load {_loads(found)}.",
            f"Model: {found['model']}",
            f"Equal: {'; '.join(HELD_EQUAL)}.",
            f"Not equal: {'; '.join(NOT_HELD_EQUAL)}.",
        )
    )


def _factor(each: Sequence[float]) -> str:
    return f"{median(each):.2f} ({', '.join(f'{value:.2f}' for value in each)})"


def _loads(found: Mapping[str, Any]) -> str:
    loads = [run["load_before"] for w in found["workloads"].values() for one in w["rounds"] for run in _runs(one)]
    return f"{min(loads):.1f} to {max(loads):.1f} before the processes" if loads else "unknown"


def _runs(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one[side] for side in NAMES if side in one]
