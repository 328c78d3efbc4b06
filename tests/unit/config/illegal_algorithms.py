"""What is refused of the `algorithm` group: overrides, then what the message must contain."""

from typing import Any

from tests.unit.config.whole_groups import EVIDENCE

CREDIT = {"name": "credit", "proximal": 1.0}
SHARPENING = {"name": "sharpening", "temperature": 0.5}

ALGORITHMS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "attention term without a second update": (
        {"algorithm.attention.weight": 0.5, "algorithm.updates_per_step": 1},
        ["algorithm.attention.weight=0.5", "algorithm.updates_per_step=1", "passes_per_step to 2 or more"],
    ),
    "token distillation without a teacher": (
        {"algorithm.distillation.tokens.weight": 0.5},
        ["algorithm.distillation.tokens.weight=0.5", "set teacher.path"],
    ),
    "attention distillation without a teacher": (
        {"algorithm.distillation.attention.weight": 0.5},
        ["algorithm.distillation.attention.weight=0.5", "set teacher.path"],
    ),
    "a teacher of attention that teaches nothing": (
        {"teacher.path": "/t", "teacher.attention_path": "/a", "algorithm.distillation.tokens.weight": 1.0},
        ["teacher.attention_path=/a has no effect"],
    ),
    "a teacher whose only subject another one teaches": (
        {"teacher.path": "/t", "teacher.attention_path": "/a", "algorithm.distillation.attention.weight": 1.0},
        ["teacher.path=/t has no effect"],
    ),
    "staler than a pause allows": (
        {"algorithm.max_staleness": 3, "checkpoint.every": 3},
        ["algorithm.max_staleness=3 is never reached with checkpoint.every=3", "raise checkpoint.every"],
    ),
    "staler than the run is long": (
        {"algorithm.max_staleness": 3, "algorithm.steps": 3, "evaluation.every": 0},
        ["algorithm.max_staleness=3 is never reached with algorithm.steps=3", "raise algorithm.steps"],
    ),
    "distilled attention of each head": (
        {
            "teacher.path": "/t",
            "algorithm.distillation.attention.weight": 1.0,
            "algorithm.attention.heads": "each",
        },
        ["algorithm.attention.heads=each", "set it to mean"],
    ),
    "distilled attention of another layer": (
        {
            "teacher.path": "/t",
            "algorithm.distillation.attention.weight": 1.0,
            "algorithm.attention.layers": [0, 1],
        },
        ["algorithm.attention.layers=[0, 1]", "add -1"],
    ),
    "nothing is learned": (
        {"algorithm.policy_weight": 0.0, "algorithm.attention.weight": 0.0},
        ["algorithm.policy_weight=0", "raise one"],
    ),
    "more prompts than records": (
        {"algorithm.prompts_per_step": 16, "data.train_records": 8},
        ["algorithm.prompts_per_step=16", "data.train_records=8", "raise the latter"],
    ),
    "batch not divisible": (
        {"algorithm.prompts_per_step": 3, "algorithm.completions_per_prompt": 5},
        ["prompts_per_step * completions_per_prompt = 15", "algorithm.updates_per_step", "change one"],
    ),
    "an update smaller than the ranks": (
        {"algorithm.prompts_per_step": 2, "algorithm.completions_per_prompt": 2, "learner.world_size": 2},
        ["4 / 4 samples", "learner.world_size=2", "raise prompts_per_step, or lower updates_per_step"],
    ),
    "a decay without an average": (
        {"algorithm.attention.ema_decay": 0.5},
        [
            "algorithm.attention.ema_decay=0.5 has no effect with algorithm.attention.anchor=old",
            "set the anchor to ema, or set ema_decay to 0.99",
        ],
    ),
    "entries of a record that is kept whole": (
        {"algorithm.attention.top_k": 8},
        [
            "algorithm.attention.top_k=8 has no effect with algorithm.attention.record=dense",
            "set record to top_k, or set top_k to 64",
        ],
    ),
    "a mixture for a divergence without one": (
        {"algorithm.distillation.tokens.jsd_beta": 0.1, "algorithm.distillation.tokens.weight": 1.0},
        [
            "algorithm.distillation.tokens.jsd_beta=0.1 has no effect with "
            "algorithm.distillation.tokens.divergence=reverse_kl",
            "set the divergence to jsd, or set jsd_beta to 0.5",
        ],
    ),
    "a length that nothing is divided by": (
        {"algorithm.fixed_length": 100},
        [
            "algorithm.fixed_length=100 has no effect with algorithm.reduction=token_mean",
            "set the reduction to fixed_length, or fixed_length to rollout.max_new_tokens, 64",
        ],
    ),
    **{
        f"the buffer of no penalty, with {handling}": (
            {"algorithm.overlong": {"handling": handling, "buffer": 8}},
            [f"algorithm.overlong.buffer=8 has no effect with algorithm.overlong.handling={handling}", "buffer to 16"],
        )
        for handling in ("none", "mask")
    },
    "bounds of no correction": (
        {"algorithm.correction": {"kind": "none", "low": 0.1, "high": 9.0}},
        [
            "algorithm.correction.low=0.1 has no effect with algorithm.correction.kind=none",
            "algorithm.correction.high=9.0 has no effect with algorithm.correction.kind=none",
        ],
    ),
    "a lower bound of a truncated correction": (
        {"algorithm.correction.low": 0.1},
        [
            "algorithm.correction.low=0.1 has no effect with algorithm.correction.kind=truncate",
            "set the kind to mask or reject_sequence, or set low to 0.5",
        ],
    ),
    "an average that keeps nothing, with one update": (
        {
            "algorithm.attention.anchor": "ema",
            "algorithm.attention.ema_decay": 0.0,
            "algorithm.updates_per_step": 1,
        },
        ["algorithm.attention.anchor=ema", "algorithm.attention.ema_decay=0", "raise ema_decay"],
    ),
    "an anchor without a term": (
        {"algorithm.attention.anchor": "reference", "algorithm.attention.weight": 0.0},
        ["algorithm.attention.anchor=reference", "algorithm.attention.weight=0", "set anchor to old"],
    ),
    "a cap without a term": (
        {"algorithm.attention.max_gradient_share": 0.2, "algorithm.attention.weight": 0.0},
        ["algorithm.attention.max_gradient_share=0.2", "algorithm.attention.weight=0", "to null"],
    ),
    "a target without a term": (
        {"algorithm.attention.target_gradient_share": 0.2, "algorithm.attention.weight": 0.0},
        ["algorithm.attention.target_gradient_share=0.2", "algorithm.attention.weight=0", "to null"],
    ),
    "a measurement without a term": (
        {"algorithm.attention.gradient_share_every": 5, "algorithm.attention.weight": 0.0},
        [
            "algorithm.attention.gradient_share_every=5",
            "algorithm.attention.weight=0",
            "set gradient_share_every to 10",
        ],
    ),
    "a weight where the share is held": (
        {"algorithm.attention.target_gradient_share": 0.2, "algorithm.attention.weight": 5.0},
        [
            "algorithm.attention.weight=5.0 has no effect with algorithm.attention.target_gradient_share=0.2",
            "set that to null, or set weight to 1.0",
        ],
    ),
    "a share that is measured in every update anyway": (
        {"algorithm.attention.target_gradient_share": 0.2, "algorithm.attention.gradient_share_every": 5},
        [
            "gradient_share_every=5 has no effect with algorithm.attention.target_gradient_share=0.2",
            "set that to null, or set gradient_share_every to 10",
        ],
    ),
    "a share that is both held and bounded": (
        {"algorithm.attention.target_gradient_share": 0.2, "algorithm.attention.max_gradient_share": 0.3},
        ["algorithm.attention.max_gradient_share=0.3", "target_gradient_share=0.2", "set one of them to null"],
    ),
    "a control without a term": (
        {"algorithm.attention.advantages": "permuted", "algorithm.attention.weight": 0.0},
        ["algorithm.attention.advantages=permuted", "algorithm.attention.weight=0", "set advantages to own"],
    ),
    "looks compared at keys of their own": (
        {"algorithm.attention.objective": CREDIT},
        ["algorithm.attention.keys=all", "algorithm.attention.objective.name=credit", "set it to visual or prompt"],
    ),
    "rows that are the same for the whole group": (
        {
            "algorithm.attention.objective": CREDIT,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.rows": "instruction",
        },
        ["algorithm.attention.rows=instruction", "name=credit", "set it to generated"],
    ),
    "a control of another objective": (
        {
            "algorithm.attention.objective": CREDIT,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.advantages": "absolute",
        },
        ["algorithm.attention.advantages=absolute", "name=credit", "set it to own or permuted"],
    ),
    "a group of two to compare within": (
        {
            "algorithm.attention.objective": CREDIT,
            "algorithm.attention.keys": "visual",
            "algorithm.completions_per_prompt": 2,
        },
        ["algorithm.completions_per_prompt=2", "name=credit", "set it to 3 or more"],
    ),
    "an anchor beside the group's": (
        {
            "algorithm.attention.objective": {"name": "group_anchor", "repel": 0.5},
            "algorithm.attention.keys": "visual",
            "algorithm.attention.anchor": "reference",
        },
        ["algorithm.attention.anchor=reference", "name=group_anchor", "set anchor to old"],
    ),
    "an objective without a term": (
        {
            "algorithm.attention.objective": CREDIT,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.weight": 0.0,
        },
        ["algorithm.attention.objective.name=credit", "algorithm.attention.weight=0", "or choose algorithm=grpo"],
    ),
    "nothing to hold back in the only update": (
        {
            "algorithm.attention.objective": CREDIT,
            "algorithm.attention.keys": "visual",
            "algorithm.updates_per_step": 1,
        },
        ["algorithm.attention.objective.proximal", "holds nothing back", "or proximal to 0"],
    ),
    "evidence among keys that are not in pictures": (
        {"algorithm.attention.objective": EVIDENCE, "algorithm.attention.keys": "prompt"},
        ["algorithm.attention.keys=prompt", "name=evidence", "set it to visual"],
    ),
    "evidence, and rows that are the same for the whole group": (
        {
            "algorithm.attention.objective": EVIDENCE,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.rows": "instruction",
        },
        ["algorithm.attention.rows=instruction", "name=evidence", "set it to generated"],
    ),
    "a repeller from evidence": (
        {
            "algorithm.attention.objective": EVIDENCE,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.advantages": "negative_absolute",
        },
        ["algorithm.attention.advantages=negative_absolute", "name=evidence", "set it to own or permuted"],
    ),
    "evidence over sequences": (
        {
            "algorithm.attention.objective": EVIDENCE,
            "algorithm.attention.keys": "visual",
            "algorithm.attention.reduction": "sequence_mean",
        },
        ["algorithm.attention.reduction=sequence_mean", "name=evidence", "set reduction to token_mean"],
    ),
    "a target that is 0 somewhere": (
        {"algorithm.attention.objective": EVIDENCE | {"smoothing": 0.0}, "algorithm.attention.keys": "visual"},
        ["algorithm.attention.objective.smoothing=0.0: out of range; set it above 0"],
    ),
    "a target without evidence": (
        {"algorithm.attention.objective": EVIDENCE | {"smoothing": 1.0}, "algorithm.attention.keys": "visual"},
        ["algorithm.attention.objective.smoothing=1.0: out of range; set it below 1"],
    ),
    "a repeller without an optimum": (
        {
            "algorithm.attention.objective": {"name": "group_anchor", "repel": 1.0},
            "algorithm.attention.keys": "visual",
        },
        ["algorithm.attention.objective.repel=1.0: out of range; set it below 1"],
    ),
    "sharpened rows of which only a part is kept": (
        {"algorithm.attention.objective": SHARPENING, "algorithm.attention.record": "top_k"},
        ["algorithm.attention.record=top_k", "algorithm.attention.objective.name=sharpening", "set it to dense"],
    ),
    "rows sharpened by a power of one": (
        {"algorithm.attention.objective": SHARPENING | {"temperature": 1.0}},
        ["algorithm.attention.objective.temperature=1.0: out of range; set it below 1"],
    ),
    "a sequence ratio whose tokens are weighed one by one": (
        {"algorithm.policy_loss": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}},
        ["algorithm.correction.kind=truncate", "gspo", "set the kind to reject_sequence or none"],
    ),
    "a correction of what is no ratio to correct": (
        {
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "binary_tv",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "rollout",
                "max_ratio": 9,
            }
        },
        ["algorithm.correction.kind=truncate", "algorithm.policy_loss.anchor=rollout", "set the kind to none"],
    ),
    "an estimator of what is not penalised": (
        {"algorithm.kl.coefficient": 0.0, "algorithm.kl.estimator": "k2"},
        ["algorithm.kl.estimator=k2", "algorithm.kl.coefficient=0", "set estimator to k3"],
    ),
    "a place for what is not penalised": (
        {"algorithm.kl.coefficient": 0.0, "algorithm.kl.place": "reward"},
        ["algorithm.kl.place=reward", "or set place to loss"],
    ),
    "a penalty that no part of the reward has": (
        {"algorithm.kl.place": "reward", "algorithm.advantage": "gdpo"},
        ["algorithm.kl.place=reward", "algorithm.advantage=gdpo", "set the place to loss"],
    ),
    "an over-long penalty that no part of the reward has": (
        {"algorithm.overlong.handling": "penalty", "algorithm.advantage": "gdpo"},
        ["algorithm.overlong.handling=penalty", "set the handling to mask or none"],
    ),
    "a buffer longer than a response": (
        {"algorithm.overlong.handling": "penalty", "algorithm.overlong.buffer": 65},
        ["algorithm.overlong.buffer=65", "rollout.max_new_tokens=64", "lower it"],
    ),
    "more rounds than records": (
        {"algorithm.prompts_per_step": 16, "algorithm.sampling_rounds": 3, "data.train_records": 40},
        ["algorithm.sampling_rounds=3", "data.train_records=40", "raise the latter"],
    ),
    "a signal that is not there yet": (
        {"algorithm.sampling_rounds": 2, "reward.visual.weight": 0.3},
        ["algorithm.sampling_rounds=2", "reward.visual.weight adds", "set sampling_rounds to 1"],
    ),
    "top tokens that nothing reads": (
        {
            "algorithm.policy_weight": 0.0,
            "algorithm.correction.kind": "none",
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "top_k_kl",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "rollout",
                "max_ratio": 9,
            },
        },
        ["algorithm.policy_loss.divergence=top_k_kl", "algorithm.policy_weight=0", "choose algorithm/policy_loss=clip"],
    ),
    "a share of nothing": (
        {
            "algorithm.policy_weight": 0.0,
            "algorithm.kl.coefficient": 0.0,
            "algorithm.attention.max_gradient_share": 0.5,
        },
        ["algorithm.attention.max_gradient_share=0.5", "set it to null"],
    ),
    "top tokens of another anchor": (
        {
            "algorithm.policy_loss": {
                "name": "dppo",
                "divergence": "top_k_tv",
                "delta": 0.1,
                "top_k": 20,
                "anchor": "old",
                "max_ratio": 9,
            },
        },
        ["algorithm.policy_loss.anchor=old with divergence=top_k_tv", "or anchor to rollout"],
    ),
    "another loss's setting": (
        {"algorithm.policy_loss": "gspo"},
        ["algorithm.policy_loss='gspo': a loss is chosen as a group, algorithm/policy_loss=gspo"],
    ),
    "thoughts to imitate where none are wanted": (
        {"data.demonstrations": "d.jsonl", "algorithm.response_format": "answer_only"},
        ["data.demonstrations=d.jsonl hold thoughts", "set it to null"],
    ),
    "words in place of pictures that a file's demonstrations speak of": (
        {"data.demonstrations": "d.jsonl", "data.sft_in_words": True},
        ["data.sft_in_words=true has no effect on data.demonstrations=d.jsonl", "set one to its default"],
    ),
    "words in place of pictures that attention is guided to": (
        {"data.sft_in_words": True, "sft.attention_guidance.image": 0.15},
        ["data.sft_in_words=true leaves sft no pictures", "set sft.attention_guidance.{image=0,system=0}"],
    ),
    "weights in bfloat16 that are to be multiplied in bfloat16": (
        {"learner.dtype": "bfloat16", "sft.autocast": "bfloat16"},
        ["sft.autocast=bfloat16 has no effect with learner.dtype=bfloat16", "set it to none"],
    ),
    "the name of another loss alone, in place of the group": (
        {"algorithm.policy_loss.name": "gspo"},
        [
            "algorithm.policy_loss.dual_clip=null: algorithm.policy_loss.name=gspo has no such setting; remove it",
            "algorithm/policy_loss=gspo as a group, without it, or algorithm/policy_loss=clip, which has it",
        ],
    ),
}
