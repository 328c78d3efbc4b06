"""From a plain container to a `RunConfig`: every mistake becomes one line with field, value and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ral_system.config.data import FilesConfig, VideoSearchConfig
from ral_system.config.evaluation import BENCHMARK_NAMES
from ral_system.config.known import did_you_mean, is_known
from ral_system.config.policy_loss import DppoLossConfig, ReinforceLossConfig
from ral_system.config.run import RunConfig
from ral_system.config.synthesis import PLACEHOLDER
from ral_system.errors import ConfigError


def parse_config(container: Mapping[str, Any]) -> RunConfig:
    """Validate types, ranges and combinations. Raises ConfigError."""
    try:
        config = RunConfig.model_validate(container)
    except ValidationError as error:
        raise ConfigError("; ".join(_one_problem(e) for e in error.errors())) from None
    problems = [*_illegal_combinations(config)]
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def _one_problem(error: Any) -> str:
    parts = [str(part) for part in error["loc"]]
    for union in (["algorithm", "policy_loss"], ["data"]):
        if parts[: len(union)] == union:
            del parts[len(union) : len(union) + 1]  # pydantic puts the choice's name there
    field = ".".join(parts)
    if error["type"] == "model_attributes_type" and field == "algorithm.policy_loss":
        return f"{field}={error['input']!r}: a loss is chosen as algorithm/policy_loss={error['input']}"
    if error["type"] == "extra_forbidden" and is_known(field):
        group = "algorithm/policy_loss" if field.startswith("algorithm.policy_loss.") else field.split(".")[0]
        return f"{field}: unknown key here; remove it, or choose another {group}=NAME, which has it"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown key; remove it; {did_you_mean(field) or '--cfg job shows the known ones'}"
    if error["type"] == "string_pattern_mismatch" and field == "name":
        better = re.sub(r"[^A-Za-z0-9._-]+", "_", error["input"]).lstrip(".-") or "run"
        return f"name={error['input']!r}: a run's name has letters, digits, '_', '.' and '-' only; set name={better}"
    if error["type"] == "string_pattern_mismatch" and field == "reward.function":
        return f"{field}={error['input']!r}: write module:function, such as my_rewards:closeness for my_rewards.py"
    if error["type"] == "missing":
        return f"{field}: missing; set it in the config"
    if error["type"] == "union_tag_not_found":
        return f"{field}.name: missing; set it in the config"
    if error["type"] == "union_tag_invalid":
        return f"{field}.name={error['ctx']['tag']}: no such choice; use one of {error['ctx']['expected_tags']}"
    if error["type"] == "half_a_source":
        return f"{field} has a path and no columns: ~{field} removes it"
    return f"{field}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _illegal_combinations(c: RunConfig) -> list[str]:
    problems = []
    a, learner = c.algorithm, c.learner
    if a.attention.weight > 0 and a.attention.anchor == "old" and a.updates_per_batch == 1 and a.max_staleness == 0:
        problems.append(
            f"algorithm.attention.weight={a.attention.weight} with algorithm.updates_per_step=1 and "
            "algorithm.passes_per_step=1 trains nothing: the divergence to the old policy has zero gradient at the old "
            "policy; set algorithm.updates_per_step or passes_per_step to 2 or more, algorithm.attention.anchor to "
            "reference or ema, or algorithm.attention.weight=0"
        )
    if a.attention.anchor == "ema" and a.attention.ema_decay == 0 and a.updates_per_batch == 1:
        problems.append(
            "algorithm.attention.anchor=ema with algorithm.attention.ema_decay=0 and one update per rollout batch "
            "trains nothing: the average is the policy itself; raise ema_decay"
        )
    if a.attention.weight == 0:
        for field, value, neutral in (
            ("anchor", a.attention.anchor, "old"),
            ("max_gradient_share", a.attention.max_gradient_share, None),
        ):
            if value != neutral:
                problems.append(
                    f"algorithm.attention.{field}={value} has no effect with algorithm.attention.weight=0; raise the "
                    f"weight, or set {field} to {'null' if neutral is None else neutral}"
                )
    problems += _distillation_problems(c)
    problems += _policy_loss_problems(c)
    problems += _visual_reward_problems(c)
    if ("function" in (c.reward.verifier, *c.reward.kinds.values())) != (c.reward.function is not None):
        problems.append(
            f"reward.verifier={c.reward.verifier} with reward.function={c.reward.function or 'null'}: set both, "
            "reward=function reward.function=module:name, or neither"
        )
    problems += _synthesis_problems(c)
    problems += _data_problems(c)
    problems += _benchmark_problems(c)
    problems += _sweep_problems(c)
    pauses = {"checkpoint.every": c.checkpoint.every, "algorithm.steps": a.steps}
    if c.evaluation.every:
        pauses["evaluation.every"] = c.evaluation.every
    soonest = min(pauses, key=lambda name: pauses[name])
    if a.max_staleness >= pauses[soonest]:
        problems.append(
            f"algorithm.max_staleness={a.max_staleness} is never reached with {soonest}={pauses[soonest]}: nothing is "
            f"generated ahead of a checkpoint, an evaluation or the end; lower it below that, or raise {soonest}"
        )
    if a.max_staleness == 0 and c.rollout.on_new_weights != "finish":
        problems.append(
            f"rollout.on_new_weights={c.rollout.on_new_weights} has no effect with algorithm.max_staleness=0, where "
            "nothing is generated while weights change; raise algorithm.max_staleness, or set it to finish"
        )
    if a.sampling_rounds > 1 and (c.reward.visual.weight > 0 or (a.kl.coefficient > 0 and a.kl.place == "reward")):
        late = "reward.visual.weight" if c.reward.visual.weight > 0 else "algorithm.kl.place=reward"
        problems.append(
            f"algorithm.sampling_rounds={a.sampling_rounds} compares rewards before scoring, and {late} adds to them "
            "after; set sampling_rounds to 1"
        )
    if a.policy_weight == 0:
        if isinstance(a.policy_loss, DppoLossConfig) and a.policy_loss.top_tokens:
            problems.append(
                f"algorithm.policy_loss.divergence={a.policy_loss.divergence} has no effect with "
                "algorithm.policy_weight=0; choose algorithm/policy_loss=clip"
            )
        if a.attention.max_gradient_share is not None and not (a.kl.coefficient > 0 and a.kl.place == "loss"):
            problems.append(
                f"algorithm.attention.max_gradient_share={a.attention.max_gradient_share:g} is a share of nothing with "
                "algorithm.policy_weight=0 and no KL in the loss; set it to null"
            )
    if a.overlong.handling == "penalty" and a.overlong.buffer > c.rollout.max_new_tokens:
        problems.append(
            f"algorithm.overlong.buffer={a.overlong.buffer} is longer than rollout.max_new_tokens="
            f"{c.rollout.max_new_tokens}; lower it"
        )
    batch = a.prompts_per_step * a.completions_per_prompt
    if batch % (a.updates_per_step * learner.world_size):
        problems.append(
            f"algorithm.prompts_per_step * completions_per_prompt = {batch} is not divisible by "
            f"algorithm.updates_per_step * learner.world_size = {a.updates_per_step} * {learner.world_size}; change one"
        )
    for stage in ("perceive", "sft"):
        size = getattr(c, stage).batch
        if size % learner.world_size:
            problems.append(f"{stage}.batch={size} is not divisible by learner.world_size={learner.world_size}")
    if c.cluster.kind == "local":
        wrong = [
            f"{field}={value} needs cluster=ray; with cluster=local set {field}={remedy}"
            for field, value, remedy in (
                ("rollout.engine", c.rollout.engine, "hf"),
                ("rollout.workers", c.rollout.workers, 1),
                ("learner.engine", learner.engine, "torch"),
                ("learner.world_size", learner.world_size, 1),
            )
            if value != remedy
        ]
        problems += wrong
    elif learner.engine == "torch" and learner.world_size > 1:
        problems.append("learner.engine=torch runs one rank; set learner.world_size=1 or learner.engine=deepspeed")
    if "bfloat16" in (c.rollout.dtype, learner.dtype) and c.rollout.log_prob_gate.token < 0.01:
        problems.append(
            f"rollout.log_prob_gate.token={c.rollout.log_prob_gate.token:g} cannot hold with rollout.dtype="
            f"{c.rollout.dtype} and learner.dtype={learner.dtype}; set both to float32, or use "
            "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"
        )
    # ZeRO 0 of DeepSpeed 0.19 refuses float32 sums of bfloat16 gradients, and its ZeRO 1 counts them several times.
    if learner.dtype == "bfloat16" and (learner.engine == "torch" or learner.zero_stage < 2):
        engine = "engine=torch" if learner.engine == "torch" else f"zero_stage={learner.zero_stage}"
        problems.append(
            f"learner.{engine} cannot add up gradients in float32, which learner.dtype=bfloat16 needs; set "
            "learner.engine=deepspeed and learner.zero_stage to 2 or 3, or learner.dtype=float32"
        )
    if c.reward.correctness + c.reward.format <= 0:
        problems.append("reward.correctness and reward.format are both 0, so nothing is learned; raise one")
    if c.rollout.max_new_tokens >= c.rollout.max_model_len:
        problems.append(
            f"rollout.max_new_tokens={c.rollout.max_new_tokens} leaves no room for a prompt in "
            f"rollout.max_model_len={c.rollout.max_model_len}; raise the latter"
        )
    return problems


def _distillation_problems(c: RunConfig) -> list[str]:
    problems = []
    attention, teach = c.algorithm.attention, c.algorithm.distillation
    for part, weight, path in (
        ("tokens", teach.tokens.weight, c.teacher.path),
        ("attention", teach.attention.weight, c.teacher.attention_path or c.teacher.path),
    ):
        if weight > 0 and path is None:
            problems.append(
                f"algorithm.distillation.{part}.weight={weight:g} needs a teacher; set teacher.path to a model folder"
            )
    for field, path, uses in (
        (
            "path",
            c.teacher.path,
            teach.tokens.weight > 0 or (teach.attention.weight > 0 and not c.teacher.attention_path),
        ),
        ("attention_path", c.teacher.attention_path, teach.attention.weight > 0),
    ):
        if path is not None and not uses:
            problems.append(
                f"teacher.{field}={path} has no effect: no weight of algorithm.distillation asks for it; "
                "choose algorithm=distill or attention_distill, or set it to null"
            )
    if teach.attention.weight > 0 and attention.heads != "mean":
        problems.append(
            f"algorithm.attention.heads={attention.heads} cannot be distilled: teacher and student need not have as "
            "many heads as each other; set it to mean"
        )
    if teach.attention.weight > 0 and not isinstance(attention.layers, str) and -1 not in attention.layers:
        problems.append(
            f"algorithm.attention.layers={list(attention.layers)} does not read the last layer, whose attention is "
            "distilled; add -1, or set it to last"
        )
    if not any((c.algorithm.policy_weight, attention.weight, teach.tokens.weight, teach.attention.weight)):
        problems.append("algorithm.policy_weight=0 and every other weight is 0, so nothing is learned; raise one")
    return problems


def _visual_reward_problems(c: RunConfig) -> list[str]:
    problems, visual = [], c.reward.visual
    if visual.weight > 0 and not c.data.system_prompt:
        problems.append(
            f"reward.visual.weight={visual.weight:g} compares attention on pictures with that on the system turn, and "
            "data.system_prompt is empty; set one, or the weight to 0"
        )
    if visual.weight == 0:
        problems += [
            f"reward.visual.{field}={value} has no effect with reward.visual.weight=0; raise the weight, or set "
            f"{field} to {neutral}"
            for field, value, neutral in (("form", visual.form, "share"), ("model", visual.model, "policy"))
            if value != neutral
        ]
    return problems


def _synthesis_problems(c: RunConfig) -> list[str]:
    problems, settings = [], c.synthesis
    try:
        re.compile(settings.anchor)
    except re.error as error:
        problems.append(f"synthesis.anchor={settings.anchor!r} is no regular expression ({error}); correct it")
    for role in ("describer", "reasoner", "anchorer"):
        who, path = getattr(settings, role), f"synthesis.{role}"
        if who.endpoint is not None and not re.match(r"https?://\S+$", who.endpoint):
            problems.append(f"{path}.endpoint={who.endpoint!r} is no address; write it like http://127.0.0.1:8000/v1")
        if (who.endpoint is None) != (who.model is None):
            problems.append(
                f"{path}.endpoint={who.endpoint} and {path}.model={who.model} go together; set both, or both to null"
            )
        if unknown := re.findall(r"\{[a-z_]*\}", PLACEHOLDER.sub("", who.instruction)):
            problems.append(
                f"{path}.instruction: {unknown[0]} is never filled in; known: {{question}}, {{description}}, "
                "{reasoning}"
            )
    if settings.describer.endpoint and not settings.reasoner.endpoint:
        problems.append(
            "synthesis.describer.endpoint is asked in vain: the template reasoner reads the scene and no description; "
            "give synthesis.reasoner.endpoint a model, too, or set the describer's to null"
        )
    return problems


def _benchmark_problems(c: RunConfig) -> list[str]:
    problems, benchmark = [], c.evaluation.benchmark
    if benchmark.name is not None and benchmark.name not in BENCHMARK_NAMES:
        near = difflib.get_close_matches(benchmark.name.lower(), BENCHMARK_NAMES, n=1)
        meant = f"did you mean {near[0]}? There are" if near else "there are"
        problems.append(
            f"evaluation.benchmark.name={benchmark.name}: no such benchmark; {meant} {', '.join(BENCHMARK_NAMES)}"
        )
    if (benchmark.name is None) != (benchmark.folder is None):
        problems.append(
            f"evaluation.benchmark.name={benchmark.name} and evaluation.benchmark.folder={benchmark.folder} go "
            "together; set both, or both to null"
        )
    if benchmark.name is not None and not isinstance(c.data, FilesConfig):
        problems.append(
            f"evaluation.benchmark.name={benchmark.name} takes sizes of pictures and the system turn from data=files; "
            f"data.name={c.data.name} has none; add data=files stages=[rl]"
        )
    return problems


def _data_problems(c: RunConfig) -> list[str]:
    problems, a, data = [], c.algorithm, c.data
    if isinstance(data, FilesConfig):
        if not data.sources and c.evaluation.benchmark.name is None:
            problems.append(
                "data.sources={}: no file; add one, +data/source@data.sources.NAME=video_r1 data.sources.NAME.path=FILE"
            )
        if "perceive" in c.stages:
            problems.append(
                f"stages={list(c.stages)}: perceive imitates captions, which data.name=files has none of; set "
                "stages=[sft,rl] or stages=[rl], and model.path or start_model to a model that sees"
            )
        without = [name for name, source in data.sources.items() if source.columns.thought is None]
        if "sft" in c.stages and a.response_format == "think_answer" and without:
            problems.append(
                f"data.sources.{without[0]}.columns.thought=null leaves sft no thought to imitate; name the column, "
                "set stages=[rl], or algorithm.response_format=answer_only"
            )
        for name, bounds in (("image", data.image), ("video", data.video)):
            low, high = bounds.min_pixels, bounds.max_pixels
            if low is not None and high is not None and low > high:
                problems.append(f"data.{name}.min_pixels={low} is above data.{name}.max_pixels={high}; lower it")
        least, most = data.video.min_frames, data.video.max_frames
        if least > most:
            problems.append(f"data.video.min_frames={least} is above data.video.max_frames={most}; lower it")
        return problems
    if a.prompts_per_step * a.sampling_rounds * (1 + a.max_staleness) > data.train_records:
        problems.append(
            f"algorithm.prompts_per_step={a.prompts_per_step} with algorithm.sampling_rounds={a.sampling_rounds} and "
            f"algorithm.max_staleness={a.max_staleness} would draw a question twice with the same weights from "
            f"data.train_records={data.train_records}; raise the latter"
        )
    if isinstance(data, VideoSearchConfig):
        return problems
    if data.objects > (cells := max(data.grid) ** 2):
        problems.append(f"data.objects={data.objects} does not fit data.grid={list(data.grid)}; at most {cells}")
    if data.demonstrations and a.response_format == "answer_only":
        problems.append(
            f"data.demonstrations={data.demonstrations} hold thoughts, and algorithm.response_format=answer_only "
            "wants none; set it to null"
        )
    return problems


def _sweep_problems(c: RunConfig) -> list[str]:
    problems, sweep = [], c.sweep
    if sweep.axis is None:
        return [
            f"sweep.{name} has no effect with sweep.axis=null; choose sweep=visual_tokens or frames"
            for name, value in (("values", sweep.values), ("models", sweep.models))
            if value
        ]
    if not sweep.values:
        problems.append(f"sweep.values=[] leaves sweep.axis={sweep.axis} nothing to try; give some")
    if c.intervention.active:
        problems.append("sweep.axis compares models as they are, and intervention steers one; set one of them to none")
    if sweep.axis == "frames":
        if odd := [value for value in sweep.values if value < 2 or value % 2]:
            problems.append(f"sweep.values={odd} are no even numbers of frames; models merge two, so round them")
        frames = c.data.FRAMES_PER_S * min(c.data.seconds) if c.data.name == "video_search" else None
        if frames and (beyond := [value for value in sweep.values if value > frames]):
            problems.append(
                f"sweep.values={beyond} are more frames than the {frames} of data.seconds; lower or raise one"
            )
    if c.data.name == "video_search" and sweep.axis == "visual_tokens":
        problems.append("sweep.axis=visual_tokens: data.name=video_search varies in frames; choose sweep=frames")
    if c.data.name == "visual_search":
        if sweep.axis == "frames":
            problems.append(
                "sweep.axis=frames needs videos, which data.name=visual_search lacks; choose data=video_search or files"
            )
        elif wrong := [value for value in sweep.values if value not in (g * g for g in range(2, 9))]:
            problems.append(
                f"sweep.values={wrong} are not the cells of a board of data=visual_search; use 4, 9, 16, 25, 36, 49, 64"
            )
    return problems


def _policy_loss_problems(c: RunConfig) -> list[str]:
    problems, a = [], c.algorithm
    loss, kind = a.policy_loss, a.correction.kind
    if loss.name == "gspo" and kind in ("truncate", "mask"):
        problems.append(
            f"algorithm.correction.kind={kind} weighs single tokens, and algorithm.policy_loss.name=gspo has one ratio "
            "for a sequence; set the kind to reject_sequence or none"
        )
    if isinstance(loss, DppoLossConfig) and loss.anchor == "rollout" and kind != "none":
        problems.append(
            f"algorithm.correction.kind={kind} corrects ratios to the recomputed log-probs, and "
            "algorithm.policy_loss.anchor=rollout has none; set the kind to none"
        )
    if isinstance(loss, DppoLossConfig) and loss.anchor == "old" and loss.top_tokens:
        problems.append(
            f"algorithm.policy_loss.anchor=old with divergence={loss.divergence}: the top tokens are the rollout's, "
            "and the learner recomputes none; set divergence to binary_tv or binary_kl, or anchor to rollout"
        )
    if a.kl.coefficient == 0:
        problems += [
            f"algorithm.kl.{field}={value} has no effect with algorithm.kl.coefficient=0; raise the coefficient, or "
            f"set the {field} to {neutral}"
            for field, value, neutral in (("estimator", a.kl.estimator, "k3"), ("place", a.kl.place, "loss"))
            if value != neutral
        ]
    elif a.kl.place == "reward" and a.advantage == "gdpo":
        problems.append(
            "algorithm.kl.place=reward takes the KL off the whole reward, and algorithm.advantage=gdpo looks at its "
            "parts; set the place to loss"
        )
    if a.overlong.handling == "penalty" and a.advantage == "gdpo":
        problems.append(
            "algorithm.overlong.handling=penalty is taken off the whole reward, and algorithm.advantage=gdpo looks at "
            "its parts; set the handling to mask or none"
        )
    return problems


def warnings(c: RunConfig) -> list[str]:
    """Legal choices that are known to go wrong, one line each."""
    found, a = [], c.algorithm
    if "bfloat16" in (c.rollout.dtype, c.learner.dtype) and c.rollout.log_prob_gate.outliers == 0:
        found.append(
            f"rollout.log_prob_gate.outliers=0 ends a bfloat16 run at its first token beyond rollout.log_prob_gate."
            f"token={c.rollout.log_prob_gate.token:g}; 0.001 leaves such tokens out of the loss instead"
        )
    if isinstance(a.policy_loss, DppoLossConfig) and a.policy_loss.anchor == "old":
        found.append(
            "algorithm.policy_loss.anchor=old compares with log-probs that the learner recomputed; DPPO's authors see "
            "training collapse that way (arXiv 2602.04879); anchor=rollout is their method"
        )
    off_policy = a.updates_per_batch > 1 or a.max_staleness > 0
    if isinstance(a.policy_loss, ReinforceLossConfig) and not a.policy_loss.ratio and off_policy:
        found.append(
            "algorithm.policy_loss.ratio=false is right for the first update of a fresh batch alone, and "
            f"algorithm.updates_per_step={a.updates_per_step}, algorithm.passes_per_step={a.passes_per_step} and "
            f"algorithm.max_staleness={a.max_staleness} make others"
        )
    if a.policy_loss.name == "gspo" and a.reduction != "sequence_mean":
        found.append(f"algorithm.reduction={a.reduction} is not GSPO's; its gradient is the paper's with sequence_mean")
    if a.kl.coefficient > 0 and a.kl.estimator == "k1" and a.kl.place == "loss":
        found.append(
            "algorithm.kl.estimator=k1 has a gradient of 0 on average and does not hold the policy back; use k2 or k3"
        )
    return found
