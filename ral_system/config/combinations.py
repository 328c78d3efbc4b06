"""What is illegal, or would do nothing, between groups. What concerns one group stands beside its fields."""

from __future__ import annotations

from collections.abc import Iterator

from ral_system.config.data import FilesConfig, VideoSearchConfig, VisualSearchConfig
from ral_system.config.run import RunConfig


def problems(c: RunConfig) -> Iterator[str]:
    """Say of every contradiction between groups which values it has and what to change."""
    for check in (
        teachers_are_used,
        visual_reward_has_a_system_turn,
        files_fit_the_stages,
        generated_data_fits_the_algorithm,
        benchmark_has_files,
        sweep_fits_the_subject,
        sweep_fits_the_data,
        staleness_is_reached,
        rewards_are_complete_when_compared,
        lengths_agree,
        batches_divide_over_ranks,
        engines_fit_the_cluster,
        gate_fits_the_dtypes,
    ):
        yield from check(c)


def warnings(c: RunConfig) -> Iterator[str]:
    """Say which legal values are known to go wrong together."""
    gate = c.rollout.log_prob_gate
    if "bfloat16" in (c.rollout.dtype, c.learner.dtype) and gate.outliers == 0:
        yield (
            "rollout.log_prob_gate.outliers=0 ends a bfloat16 run at its first token beyond "
            f"rollout.log_prob_gate.token={gate.token:g}; 0.001 leaves such tokens out of the loss instead"
        )


def teachers_are_used(c: RunConfig) -> Iterator[str]:
    """Check that every weight of distillation has a teacher, and every teacher a weight."""
    teach, path, other = c.algorithm.distillation, c.teacher.path, c.teacher.attention_path
    tokens, attention = teach.tokens.weight, teach.attention.weight
    for part, weight, found in (("tokens", tokens, path), ("attention", attention, other or path)):
        if weight > 0 and found is None:
            yield (
                f"algorithm.distillation.{part}.weight={weight:g} needs a teacher; set teacher.path to a model folder"
            )
    for field, given, uses in (
        ("path", path, tokens > 0 or (attention > 0 and not other)),
        ("attention_path", other, attention > 0),
    ):
        if given is not None and not uses:
            yield (
                f"teacher.{field}={given} has no effect: no weight of algorithm.distillation asks for it; "
                "choose algorithm=distill or attention_distill, or set it to null"
            )


def visual_reward_has_a_system_turn(c: RunConfig) -> Iterator[str]:
    """Check that the visual-anchored reward has two things to compare."""
    if c.reward.visual.weight > 0 and not c.data.system_prompt:
        yield (
            f"reward.visual.weight={c.reward.visual.weight:g} compares attention on pictures with that on the system "
            "turn, and data.system_prompt is empty; set one, or the weight to 0"
        )


def files_fit_the_stages(c: RunConfig) -> Iterator[str]:
    """Check that files of questions have what the stages imitate."""
    if not isinstance(c.data, FilesConfig):
        return
    if not c.data.sources and c.evaluation.benchmark.name is None:
        yield "data.sources={}: no file; add one, +data/source@data.sources.NAME=video_r1 data.sources.NAME.path=FILE"
    if "perceive" in c.stages:
        yield (
            f"stages={list(c.stages)}: perceive imitates captions, which data.name=files has none of; set "
            "stages=[sft,rl] or stages=[rl], and model.path or start_model to a model that sees"
        )
    without = [name for name, source in c.data.sources.items() if source.columns.thought is None]
    if "sft" in c.stages and c.algorithm.response_format == "think_answer" and without:
        yield (
            f"data.sources.{without[0]}.columns.thought=null leaves sft no thought to imitate; name the column, "
            "set stages=[rl], or algorithm.response_format=answer_only"
        )


def generated_data_fits_the_algorithm(c: RunConfig) -> Iterator[str]:
    """Check that generated questions last for a batch, and that demonstrations have the response format."""
    a, data = c.algorithm, c.data
    if isinstance(data, FilesConfig):
        return
    if a.prompts_per_step * a.sampling_rounds * (1 + a.max_staleness) > data.train_records:
        yield (
            f"algorithm.prompts_per_step={a.prompts_per_step} with algorithm.sampling_rounds={a.sampling_rounds} and "
            f"algorithm.max_staleness={a.max_staleness} would draw a question twice with the same weights from "
            f"data.train_records={data.train_records}; raise the latter"
        )
    if isinstance(data, VisualSearchConfig) and data.demonstrations and a.response_format == "answer_only":
        yield (
            f"data.demonstrations={data.demonstrations} hold thoughts, and algorithm.response_format=answer_only "
            "wants none; set it to null"
        )


def benchmark_has_files(c: RunConfig) -> Iterator[str]:
    """Check that a benchmark finds its sizes and its system turn."""
    name = c.evaluation.benchmark.name
    if name is not None and not isinstance(c.data, FilesConfig):
        yield (
            f"evaluation.benchmark.name={name} takes sizes of pictures and the system turn from data=files; "
            f"data.name={c.data.name} has none; add data=files stages=[rl]"
        )


def sweep_fits_the_subject(c: RunConfig) -> Iterator[str]:
    """Check that a sweep compares models that nothing steers."""
    if c.sweep.axis is not None and c.intervention.active:
        yield "sweep.axis compares models as they are, and intervention steers one; set one of them to none"


def sweep_fits_the_data(c: RunConfig) -> Iterator[str]:
    """Check that generated data can vary as the sweep asks."""
    sweep, data = c.sweep, c.data
    if isinstance(data, VideoSearchConfig):
        frames = data.FRAMES_PER_S * min(data.seconds)
        if sweep.axis == "frames" and (beyond := [value for value in sweep.values if value > frames]):
            yield f"sweep.values={beyond} are more frames than the {frames} of data.seconds; lower or raise one"
        if sweep.axis == "visual_tokens":
            yield "sweep.axis=visual_tokens: data.name=video_search varies in frames; choose sweep=frames"
    elif isinstance(data, VisualSearchConfig):
        boards = [side**2 for side in range(2, 9)]
        if sweep.axis == "frames":
            yield (
                "sweep.axis=frames needs videos, which data.name=visual_search lacks; choose data=video_search or files"
            )
        elif sweep.axis and (wrong := [value for value in sweep.values if value not in boards]):
            yield (
                f"sweep.values={wrong} are not the cells of a board of data=visual_search; use "
                f"{', '.join(map(str, boards))}"
            )


def staleness_is_reached(c: RunConfig) -> Iterator[str]:
    """Check that batches can be as stale as they may, and that weights can change while one is generated."""
    staleness = c.algorithm.max_staleness
    pauses = {"checkpoint.every": c.checkpoint.every, "algorithm.steps": c.algorithm.steps}
    if c.evaluation.every:
        pauses["evaluation.every"] = c.evaluation.every
    soonest = min(pauses, key=lambda name: pauses[name])
    if staleness >= pauses[soonest]:
        yield (
            f"algorithm.max_staleness={staleness} is never reached with {soonest}={pauses[soonest]}: nothing is "
            f"generated ahead of a checkpoint, an evaluation or the end; lower it below that, or raise {soonest}"
        )
    if staleness == 0 and c.rollout.on_new_weights != "finish":
        yield (
            f"rollout.on_new_weights={c.rollout.on_new_weights} has no effect with algorithm.max_staleness=0, where "
            "nothing is generated while weights change; raise algorithm.max_staleness, or set it to finish"
        )


def rewards_are_complete_when_compared(c: RunConfig) -> Iterator[str]:
    """Check that dynamic sampling compares whole rewards."""
    a, visual = c.algorithm, c.reward.visual.weight > 0
    if a.sampling_rounds > 1 and (visual or (a.kl.coefficient > 0 and a.kl.place == "reward")):
        late = "reward.visual.weight" if visual else "algorithm.kl.place=reward"
        yield (
            f"algorithm.sampling_rounds={a.sampling_rounds} compares rewards before scoring, and {late} adds to them "
            "after; set sampling_rounds to 1"
        )


def lengths_agree(c: RunConfig) -> Iterator[str]:
    """Check lengths of the algorithm against the longest response."""
    a, longest = c.algorithm, c.rollout.max_new_tokens
    if a.overlong.handling == "penalty" and a.overlong.buffer > longest:
        yield (
            f"algorithm.overlong.buffer={a.overlong.buffer} is longer than rollout.max_new_tokens={longest}; lower it"
        )
    if a.reduction != "fixed_length" and a.fixed_length != longest:
        yield (
            f"algorithm.fixed_length={a.fixed_length} has no effect with algorithm.reduction={a.reduction}; set the "
            f"reduction to fixed_length, or fixed_length to rollout.max_new_tokens, {longest}"
        )


def batches_divide_over_ranks(c: RunConfig) -> Iterator[str]:
    """Check that every update and every supervised batch gives all ranks as much to do."""
    a, ranks = c.algorithm, c.learner.world_size
    batch = a.prompts_per_step * a.completions_per_prompt
    if batch % (a.updates_per_step * ranks):
        yield (
            f"algorithm.prompts_per_step * completions_per_prompt = {batch} is not divisible by "
            f"algorithm.updates_per_step * learner.world_size = {a.updates_per_step} * {ranks}; change one"
        )
    for stage, size in (("perceive", c.perceive.batch), ("sft", c.sft.batch)):
        if size % ranks:
            yield f"{stage}.batch={size} is not divisible by learner.world_size={ranks}"


def engines_fit_the_cluster(c: RunConfig) -> Iterator[str]:
    """Check that one process runs what one process can, and that Ray's actors run vLLM."""
    learner, rollout = c.learner, c.rollout
    if c.cluster.kind == "ray":
        if rollout.engine == "hf":
            yield (
                "rollout.engine=hf runs in the process that calls it, and cluster.kind=ray starts vLLM engines; choose "
                "rollout=vllm or cluster=local"
            )
        if learner.engine == "torch" and learner.world_size > 1:
            yield "learner.engine=torch runs one rank; set learner.world_size=1 or choose learner=deepspeed"
        return
    for field, value, needed, remedy in (
        ("rollout.engine", rollout.engine, "hf", "choose rollout=hf"),
        ("rollout.workers", rollout.workers, 1, "set rollout.workers=1"),
        ("learner.engine", learner.engine, "torch", "choose learner=torch"),
        ("learner.world_size", learner.world_size, 1, "set learner.world_size=1"),
    ):
        if value != needed:
            yield f"{field}={value} needs cluster=ray; with cluster=local {remedy}"


def gate_fits_the_dtypes(c: RunConfig) -> Iterator[str]:
    """Check that the log-prob gate allows for the rounding of bfloat16."""
    gate = c.rollout.log_prob_gate
    if "bfloat16" in (c.rollout.dtype, c.learner.dtype) and gate.token < 0.01:
        yield (
            f"rollout.log_prob_gate.token={gate.token:g} cannot hold with rollout.dtype={c.rollout.dtype} and "
            f"learner.dtype={c.learner.dtype}; set both to float32, or use "
            "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"
        )
