"""Prints a plan as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ral_system.config.commands import TrainConfig
from ral_system.planning.host import fullest
from ral_system.planning.memory import gib, room, streams_weights
from ral_system.planning.plan import Plan
from ral_system.planning.seconds import PREPROCESS_S_PER_PIXEL, PUBLISH_S_PER_BYTE, WRITE_BYTES_PER_S

_PARTS = ("weights", "gradients", "optimiser", "buffers", "average", "media", "cache", "context")


def print_plan(config: TrainConfig, plan: Plan, console: Console) -> None:
    """Print memory, cores and time of the run, and the assumptions."""
    algorithm, sample = config.algorithm, plan.samples[0]
    visual = sample.prompt.visual_tokens
    words = len(sample.prompt.token_ids) - visual
    console.print(
        f"A step: {algorithm.prompts_per_step} prompts of {visual:,} visual and {words:,} other tokens, "
        f"{algorithm.completions_per_prompt} responses each of {len(sample.response_token_ids):,} tokens, "
        f"{algorithm.updates_per_step} updates, on {plan.device.name}"
    )
    console.print(_memory(plan))
    if plan.host:
        console.print(_host(plan))
    if plan.cores:
        console.print(_cores(plan))
    if plan.shared:
        phases = ", ".join(f"{phase} {gib(size)}" for phase, size in plan.shared.items())
        console.print(f"GiB on a shared GPU: {phases}; limit {gib(plan.device.usable)}.")
    console.print(f"The KV cache of an engine has room for {plan.at_once:,} such sequences.\n")
    if plan.problems:
        return  # a run that does not fit takes no time
    console.print(_time(plan))
    alone = algorithm.max_staleness or algorithm.sampling_rounds > 1 or config.cluster.placement == "colocated"
    frozen = f", frozen models {'after' if alone else 'beside'} the engines" if len(plan.roles) > 2 else ""
    console.print(
        f"A step takes {_duration(plan.step_s)}: "
        f"{'learners and engines side by side' if algorithm.max_staleness else 'learners wait for engines'}{frozen}."
    )
    local = config.cluster.kind == "local" and plan.device.kind == "cuda"
    used = plan.roles[:1] if plan.shared else plan.roles
    gpus = 1 if local else sum(role.processes * role.gpus for role in used)
    on = f" on {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else ""
    stored = plan.checkpoint_bytes * (config.checkpoint.keep + 1)
    console.print(
        f"{algorithm.steps:,} steps take {_duration(plan.run_s)}{on}, {_duration(plan.evaluations_s)} of them "
        f"evaluations, and {gib(stored)} GiB of disk for checkpoints of {gib(plan.checkpoint_bytes)} GiB."
    )
    if plan.supervised:
        console.print(_supervised(plan))
        each = ", ".join(f"{stage.name} {_duration(stage.run_s)}" for stage in plan.supervised)
        console.print(
            f"With {each}, all stages take {_duration(plan.all_s)}: supervised ones at most, since stop_at may end "
            "them earlier, and not every evaluation saves a model."
        )
    device = plan.device
    publishing = "" if streams_weights(config) else f"{PUBLISH_S_PER_BYTE * 1e9:.2g} s per published GB, "
    console.print(
        f"Assumed: {device.flops_per_s / 1e12:.3g} TFLOP/s in passes, {device.bytes_per_s / 1e9:,.0f} GB/s "
        f"in decoding, {device.decode_s * 1e3:g} ms overhead per decoding step, {publishing}"
        f"{PREPROCESS_S_PER_PIXEL * 1e9:g} ns to preprocess a pixel, {WRITE_BYTES_PER_S / 1e9:g} GB/s to disk. Not "
        "counted: start-up, rewards, decoding of media, preparation of data."
    )
    for line in plan.advice:
        console.print(f"note: {line}")


def _memory(plan: Plan) -> Table:
    parts = [part for part in _PARTS if any(role.device.get(part) for role in plan.roles)]
    table = Table("GiB per device", *parts, "each pass", "peak", "limit", "host", title_justify="left")
    for role in (*plan.roles, *(stage.learner for stage in plan.supervised)):
        most = max(role.phases, key=lambda phase: role.phases[phase]) if role.phases else ""
        table.add_row(
            f"{role.name} × {role.processes}",
            *(gib(role.device[part]) if part in role.device else "" for part in parts),
            ", ".join(f"{phase} {gib(size)}" for phase, size in role.phases.items()) if most else "",
            gib(role.total),
            gib(room(plan.device, role)),
            ", ".join(f"{part} {gib(size)}" for part, size in (*role.host.items(), *role.once.items())),
        )
    return table


def _host(plan: Plan) -> Table:
    holders = list(dict.fromkeys(holder for holder, _ in plan.host))
    table = Table("GiB of host memory", *holders, "total", "limit")
    by_holder = [sum(size for (holder, _), size in plan.host.items() if holder == name) for name in holders]
    table.add_row("fullest node", *map(gib, (*by_holder, plan.host.total(), plan.device.node_bytes)))
    return table


def _cores(plan: Plan) -> Table:
    roles = list(dict.fromkeys([*(role.name for role in plan.roles), "verifiers"]))
    table = Table("CPU cores that Ray reserves", *roles, "total", "limit")

    def add(name: str, nodes: Sequence[dict[str, float]], limit: float | None) -> None:
        by_role = [sum(node.get(role, 0.0) for node in nodes) for role in roles]
        table.add_row(name, *(f"{n:g}" for n in (*by_role, sum(by_role))), "" if limit is None else f"{limit:g}")

    add("fullest node", [fullest(plan.cores)], plan.device.node_cores)
    if len(plan.cores) > 1:
        add(f"all {len(plan.cores)} nodes", plan.cores, None)
    return table


def _supervised(plan: Plan) -> Table:
    table = Table("stage", "demonstrations a step", "TFLOP a step", "seconds a step", "steps", "evaluations")
    for stage in plan.supervised:
        visual = sum(sample.prompt.visual_tokens for sample in stage.samples)
        tokens = sum(sample.length for sample in stage.samples)
        table.add_row(
            stage.name,
            f"{len(stage.samples)} of {tokens / len(stage.samples):,.0f} tokens, {visual / tokens:.0%} visual, "
            f"{'drawn' if stage.drawn else 'assumed'}",
            _number(stage.step.flops / 1e12),
            _number(stage.step.seconds),
            f"{stage.steps:,}",
            _duration(stage.evaluations_s),
        )
    return table


def _time(plan: Plan) -> Table:
    table = Table("phase of a step", "TFLOP", "seconds", "bound by")
    for phase in plan.phases:
        table.add_row(phase.name, _number(phase.flops / 1e12), _number(phase.seconds), phase.bound)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.3g} s"
        if seconds < 120
        else f"{seconds / 60:.3g} min"
        if seconds < 7200
        else f"{seconds / 3600:.3g} h"
    )
