"""What is refused of the other groups: overrides, then what the message must contain."""

from typing import Any

from ral_system.alarms.known import ALARMS
from tests.unit.config.whole_groups import ASKED_VIDEOS, EVIDENCE, FILES, HF, LOCAL, LORA, SEEN, TORCH, VIDEOS

STOPPING = [alarm.name for alarm in ALARMS if alarm.stops]

SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two kinds that are one": (
        {"reward.kinds": {"Count": "numeric", "count": "exact"}},
        ["reward.kinds=['Count', 'count']: kinds that differ in case alone are one"],
    ),
    "accuracy that no alarm looks at": (
        {"alarms.aux_runaway": None, "alarms.blind_gap": None, "alarms.flat_accuracy": 0.1},
        ["alarms.flat_accuracy=0.1 has no effect with aux_runaway=null and blind_gap=null; set a limit, or set"],
    ),
    "a stop that no alarm asks for": (
        {"alarms.action": "stop", **{f"alarms.{name}": None for name in STOPPING}},
        [
            "alarms.action=stop has no effect with no limit but part_share, attention_share_low, "
            "attention_share_of_target; set another limit, or action=log"
        ],
    ),
    "a teacher that teaches nothing": (
        {"teacher.path": "/teacher"},
        ["teacher.path=/teacher has no effect", "choose algorithm=distill"],
    ),
    "captions of files": (
        {"data": FILES, "stages": ["perceive", "rl"]},
        ["stages=['perceive', 'rl']: perceive needs captions, and data=files has none", "set stages=[sft,rl]"],
    ),
    "thoughts of files that have none": (
        {"data": FILES, "stages": ["sft"]},
        ["data.sources.main.columns.thought=null", "name the column"],
    ),
    "evidence from files that have none": (
        {
            "data": FILES,
            "stages": ["rl"],
            "algorithm.attention.objective": EVIDENCE | {"missing": "skip"},
            "algorithm.attention.keys": "visual",
        },
        ["data.sources.main.columns.evidence=null", "name=evidence", "from that column; name it"],
    ),
    "evidence from some files alone": (
        {
            "data": FILES | {"sources": FILES["sources"] | {"other": SEEN}},
            "stages": ["rl"],
            "algorithm.attention.objective": EVIDENCE,
            "algorithm.attention.keys": "visual",
        },
        ["data.sources.main.columns.evidence=null", "or set that objective's missing to skip"],
    ),
    "half of a source, which an experiment left": (
        {"data": FILES | {"sources": {"main": {"path": "rows.json"}}}, "stages": ["rl"]},
        ["data.sources.main has a path and no columns: ~data.sources.main removes it"],
    ),
    "no pixels at all": (
        {"data": FILES | {"image": {"min_pixels": 9000, "max_pixels": 8000}}, "stages": ["rl"]},
        ["data.image.min_pixels=9000 is above data.image.max_pixels=8000"],
    ),
    "no number of frames": (
        {"data": FILES | {"video": FILES["video"] | {"min_frames": 9}}, "stages": ["rl"]},
        ["data.video.min_frames=9 is above data.video.max_frames=8; lower it"],
    ),
    "a benchmark without its files": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark.name": "mme"},
        ["evaluation.benchmark.name=mme and evaluation.benchmark.folder=None go together"],
    ),
    "a benchmark that is none": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark": {"name": "V_Star", "folder": "/v", "limit": None}},
        ["evaluation.benchmark.name=V_Star: no such benchmark; did you mean vstar? There are vstar, mme, chartqa"],
    ),
    "a benchmark like no other": (
        {"data": FILES, "stages": ["rl"], "evaluation.benchmark": {"name": "none", "folder": "/v", "limit": None}},
        ["evaluation.benchmark.name=none: no such benchmark; choose one of vstar, mme, chartqa"],
    ),
    "a benchmark of no size": (
        {"evaluation.benchmark.name": "mme", "evaluation.benchmark.folder": "/mme"},
        ["evaluation.benchmark.name=mme", "data.name=visual_search", "add data=files"],
    ),
    "values of no axis": (
        {"sweep.values": [4], "sweep.models": {"a": "/a"}},
        ["sweep.values has no effect with sweep.axis=null", "sweep.models has no effect"],
    ),
    "an axis without values": ({"sweep.axis": "visual_tokens"}, ["sweep.values=[] leaves sweep.axis=visual_tokens"]),
    "a sweep of a model that is blinded": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4], "evaluation.blind": True},
        ["evaluation.blind=true has no effect with sweep.axis=visual_tokens", "set one of them to false or null"],
    ),
    "a sweep with parts of the pictures": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4], "evaluation.attended": 0.2},
        ["evaluation.attended=0.2 has no effect with sweep.axis=visual_tokens; set one of them to null"],
    ),
    "a sweep with gradients": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4], "evaluation.saliency": True},
        ["evaluation.saliency=true has no effect with sweep.axis=visual_tokens; set one of them to false or null"],
    ),
    "gradients of no question": (
        {"evaluation.saliency": True, "evaluation.attention_questions": 0},
        ["evaluation.saliency=true has no effect with evaluation.attention_questions=0; raise it, or set saliency"],
    ),
    "gradients of a benchmark": (
        {
            "data": FILES,
            "evaluation.saliency": True,
            "evaluation.benchmark": {"name": "mme", "folder": "/m", "limit": None},
        },
        ["evaluation.saliency=true has no effect with evaluation.benchmark.name=mme", "set it to false"],
    ),
    "a sweep of a steered model": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4], "intervention.image": 0.1},
        [
            "sweep.axis=visual_tokens compares models as they are, and intervention.image=0.1 and",
            "intervention.system=0 steer one; set both to 0, or choose sweep=none",
        ],
    ),
    "an odd number of frames": (
        {"data": ASKED_VIDEOS, "sweep.axis": "frames", "sweep.values": [2, 3]},
        ["sweep.values=[3]: frame counts must be even and at least 2"],
    ),
    "more frames than there are": (
        {"data": ASKED_VIDEOS, "sweep.axis": "frames", "sweep.values": [8, 18]},
        ["sweep.values=[18] are more frames than the 16 of data.seconds"],
    ),
    "frames of pictures": (
        {"sweep.axis": "frames", "sweep.values": [4]},
        ["sweep.axis=frames needs videos", "choose data=video_search or files"],
    ),
    "a board of five cells": (
        {"sweep.axis": "visual_tokens", "sweep.values": [4, 5]},
        ["sweep.values=[5] are not the cells of a board", "use 4, 9, 16"],
    ),
    "too few videos": (
        {"data": VIDEOS},
        ["would draw a question twice with the same weights from data.train_records=2"],
    ),
    "visual tokens of videos": (
        {"data": ASKED_VIDEOS, "sweep.axis": "visual_tokens", "sweep.values": [4]},
        ["data.name=video_search varies in frames; choose sweep=frames"],
    ),
    "files without a file": (
        {"data": FILES | {"sources": {}}, "stages": ["rl"]},
        ["data.sources={}: no file; add one"],
    ),
    "a function that nobody calls": (
        {"reward.function": "mine:closeness"},
        ["reward.verifier=exact with reward.function=mine:closeness", "reward=function"],
    ),
    "no function to call": (
        {"reward.verifier": "function"},
        ["reward.verifier=function with reward.function=null", "reward.function=module:name"],
    ),
    "weights that change under what is not under way": (
        {"rollout.on_new_weights": "continue"},
        [
            "rollout.on_new_weights=continue has no effect",
            "raise algorithm.max_staleness, or set on_new_weights to finish",
        ],
    ),
    "more objects than cells": (
        {"data.grid": 3, "data.objects": 10},
        ["data.objects=10", "data.grid=[3]", "at most 9"],
    ),
    "a perceive batch smaller than the ranks": (
        {"perceive.batch": 1, "learner.world_size": 2},
        ["perceive.batch=1", "learner.world_size=2", "raise perceive.batch"],
    ),
    "an sft batch smaller than the ranks": (
        {"sft.batch": 1, "learner.world_size": 2},
        ["sft.batch=1", "learner.world_size=2"],
    ),
    "local with everything distributed": (
        {"cluster": LOCAL, "rollout.workers": 2, "learner.world_size": 2},
        [
            "rollout.engine=vllm needs cluster=ray; with cluster=local choose rollout=hf",
            "rollout.workers=2 needs cluster=ray; with cluster=local set rollout.workers=1",
            "learner.engine=deepspeed needs cluster=ray; with cluster=local choose learner=torch",
            "learner.world_size=2 needs cluster=ray; with cluster=local set learner.world_size=1",
        ],
    ),
    "several processes of no reference": (
        {"cluster.scorers": 2, "algorithm.kl.coefficient": 0.0},
        ["cluster.scorers=2 has no effect: algorithm.kl.coefficient=0", "set cluster.scorers=1"],
    ),
    **{
        f"the end of a rate that stays, in {group}": (
            {f"{group}.schedule.end": 0.1},
            [f"{group}.schedule.end=0.1 has no effect with {group}.schedule.shape=constant; set shape to linear"],
        )
        for group in ("learner", "perceive", "sft")
    },
    **{
        f"no rate at all for the {part}": (
            {f"learner.rate_factors.{part}": 0.0},
            [f"learner.rate_factors.{part}=0 leaves weights as they are", "set model.freeze_vision=true"],
        )
        for part in ("vision", "projector")
    },
    "rates of frozen parts": (
        {"model.freeze_vision": True, "learner.rate_factors": {"vision": 0.1, "projector": 2.0}},
        [
            "learner.rate_factors.vision=0.1 has no effect with model.freeze_vision=true",
            "learner.rate_factors.projector=2.0 has no effect with model.freeze_vision=true; set model.freeze_vision "
            "to false, or set projector to 1.0",
        ],
    ),
    "adapters on random weights": (
        {"learner.lora": LORA},
        ["learner.lora.rank=4 trains adapters on random weights: model.path=null", "set model.path or start_model"],
    ),
    "adapters in a frozen encoder": (
        {"learner.lora": LORA | {"vision": True}, "model.freeze_vision": True, "stages": ["rl"]},
        ["learner.lora.vision=true", "which model.freeze_vision=true keeps fixed; set one of them to false"],
    ),
    "rates of parts without adapters": (
        {"learner.lora": LORA, "learner.rate_factors": {"vision": 0.1, "projector": 1.0}, "stages": ["rl"]},
        [
            "learner.rate_factors.vision=0.1 has no effect with learner.lora.vision=false; set learner.lora.vision to "
            "true, or set vision to 1.0"
        ],
    ),
    "several processes of a reference that learners score": (
        {"learner.lora": LORA, "cluster.scorers": 2, "stages": ["rl"]},
        ["cluster.scorers=2 has no effect with learner.lora.rank=4", "set cluster.scorers=1"],
    ),
    "adapters of no matrix": (
        {"learner.lora": LORA | {"targets": []}},
        ["learner.lora.targets=[]"],
    ),
    "adapters without a rank": (
        {"learner.lora": LORA | {"rank": 0}},
        ["learner.lora.rank=0: out of range; set it above 0"],
    ),
    "a rate that falls to nothing known": (
        {"sft.schedule.shape": "cosine"},
        ["sft.schedule.end=null: sft.schedule.shape=cosine needs the share", "set end to 0.1"],
    ),
    "torch engine on several ranks": (
        {"learner": TORCH | {"world_size": 2}},
        ["learner.engine=torch", "set learner.world_size=1 or choose learner=deepspeed"],
    ),
    "a ZeRO stage of the torch engine": (
        {"learner": TORCH | {"zero_stage": 2}},
        [
            "learner.zero_stage=2: learner.engine=torch has no such setting; remove it (~learner.zero_stage), or "
            "choose learner=torch as a group, without it, or learner=deepspeed, which has it",
        ],
    ),
    "the engine alone, in place of the group": (
        {"learner.engine": "torch", "rollout.engine": "hf"},
        [
            "learner.engine=torch has no zero_stage, offload, sequence_parallel and collective_timeout_s; choose",
            "rollout.engine=hf has no tensor_parallel, memory_gib and gpu_memory_utilization; choose rollout=hf as",
        ],
    ),
    "an engine that does not exist": (
        {"rollout.engine": "sglang"},
        ["rollout.engine=sglang: no such choice; use one of 'hf', 'vllm'"],
    ),
    "a transformers engine on two GPUs": (
        {"rollout": HF, "cluster.gpus_per_rollout": 2},
        ["cluster.gpus_per_rollout=2: rollout.engine=hf uses one GPU; set it to 1 and raise rollout.workers"],
    ),
    "a transformers engine on a learner's GPU": (
        {"rollout": HF | {"workers": 2}, "cluster.placement": "colocated"},
        [
            "rollout.engine=hf with cluster.placement=colocated: the transformers engine keeps its weights on the GPU",
            "choose rollout=vllm, or cluster.placement=disaggregated",
        ],
    ),
    **{
        f"{field} of the transformers engine": (
            {"cluster": LOCAL, "learner": TORCH, "rollout": HF | {field: value}},
            [f"rollout.{field}={value}: rollout.engine=hf has no such setting; remove it (~rollout.{field})"],
        )
        for field, value in (("tensor_parallel", 2), ("memory_gib", 4.0), ("gpu_memory_utilization", 0.5))
    },
    "a frame without pixels": (
        {"data": FILES | {"video": FILES["video"] | {"min_pixels": 9000}}, "stages": ["rl"]},
        ["data.video.min_pixels=9000 is above data.video.max_pixels=7840; lower it"],
    ),
    "ranks that are left over": (
        {"learner.world_size": 3, "learner.sequence_parallel": 2},
        ["learner.sequence_parallel=2 does not divide learner.world_size=3", "set world_size to a multiple of it"],
    ),
    "a batch smaller than the groups of ranks": (
        {"sft.batch": 1, "learner.world_size": 4, "learner.sequence_parallel": 2},
        [
            "sft.batch=1 is smaller than the 2 groups of ranks (learner.world_size=4 / learner.sequence_parallel=2); "
            "raise sft.batch"
        ],
    ),
    "ranks together in the torch engine": (
        {"learner": TORCH | {"sequence_parallel": 2}},
        ["learner.sequence_parallel=2: learner.engine=torch has no such setting"],
    ),
    "bfloat16 with ZeRO 1": (
        {"learner.dtype": "bfloat16", "learner.zero_stage": 1, "rollout.log_prob_gate.token": 2.0},
        ["learner.zero_stage=1", "learner.dtype=bfloat16", "zero_stage to 2 or 3"],
    ),
    "an optimiser that ranks do not share, in host memory": (
        {"learner.offload": "optimizer", "learner.zero_stage": 0},
        ["learner.offload=optimizer", "learner.zero_stage=0", "set learner.zero_stage to 1, 2 or 3"],
    ),
    "parameters that ranks do not share, in host memory": (
        {"learner.offload": "optimizer_and_parameters", "learner.zero_stage": 2},
        ["learner.zero_stage=2 each has all of them; set learner.zero_stage=3, or learner.offload=optimizer"],
    ),
    "a model that ranks do not share, in host memory": (
        {"learner.offload": "optimizer_and_parameters", "learner.zero_stage": 0},
        ["learner.zero_stage=0 each has all of them; set learner.zero_stage=3, or learner.offload=none"],
    ),
    "bfloat16 in the torch engine": (
        {"learner": TORCH | {"dtype": "bfloat16"}, "rollout.log_prob_gate.token": 2.0},
        ["learner.engine=torch", "learner.dtype=bfloat16", "choose learner=deepspeed", "learner.dtype=float32"],
    ),
    "a gate too tight for bfloat16": (
        {"rollout.dtype": "bfloat16"},
        ["rollout.log_prob_gate.token=0.0001", "rollout.dtype=bfloat16", "set both to float32, or"],
    ),
    "the form of a visual reward that is not given": (
        {"reward.visual.form": "ratio"},
        ["reward.visual.form=ratio", "reward.visual.weight=0", "set form to share"],
    ),
    "the form of an option that sets a weight as well": (
        {"reward.visual.form": "laser_pays_length"},
        ["reward.visual.form=laser_pays_length has no effect with reward.visual.weight=0", "set form to share"],
    ),
    "an anchor that is no pattern": (
        {"synthesis.anchor": "look (at"},
        ["synthesis.anchor='look (at' is not a regular expression", "correct it"],
    ),
    "a description that nobody reads": (
        {"synthesis.describer.endpoint": "http://127.0.0.1:8000/v1", "synthesis.describer.model": "m"},
        ["synthesis.describer.endpoint has no effect", "set synthesis.reasoner.endpoint as well"],
    ),
    "an endpoint without a model": (
        {"synthesis.reasoner.endpoint": "http://127.0.0.1:8000/v1"},
        ["synthesis.reasoner.endpoint=http://127.0.0.1:8000/v1 and synthesis.reasoner.model=None go together"],
    ),
    "an endpoint that is no address": (
        {"synthesis.describer.endpoint": "localhost", "synthesis.describer.model": "m"},
        ["synthesis.describer.endpoint='localhost' is not an address", "http://127.0.0.1:8000/v1"],
    ),
    "an instruction with a misspelt place": (
        {"synthesis.anchorer.instruction": "{reasoning} {desciption}"},
        ["synthesis.anchorer.instruction: {desciption} is never filled in", "{description}"],
    ),
    "a tokenizer for a model that is given": (
        {"model.tiny.tokenizer": "/qwen", "model.path": "/model"},
        ["model.tiny.tokenizer=/qwen has no effect with model.path=/model, a model with its own; remove the model, or"],
    ),
    "a tokenizer for a model that is not built": (
        {"model.tiny.tokenizer": "/qwen", "start_model": "/model"},
        ["model.tiny.tokenizer=/qwen has no effect with start_model=/model", "or set tokenizer to null"],
    ),
    "no reward": (
        {"reward.correctness": 0.0, "reward.format": 0.0},
        ["reward.correctness", "reward.format", "raise one"],
    ),
    "no room for a prompt": (
        {"rollout.max_new_tokens": 256, "rollout.max_model_len": 256},
        ["rollout.max_new_tokens=256", "rollout.max_model_len=256", "raise the latter"],
    ),
}
