"""Values that nothing reads, between and inside groups: overrides, then what the message must contain."""

from typing import Any

from tests.unit.config.whole_groups import HF, LOCAL, TORCH

_DPPO = {"name": "dppo", "divergence": "binary_tv", "delta": 0.15, "top_k": 5, "anchor": "rollout", "max_ratio": 20.0}
_NO_POLICY_LOSS = {"algorithm.policy_weight": 0.0, "algorithm.attention.weight": 1.0}
_LOCAL = {"cluster": LOCAL, "learner": TORCH}

INERT: dict[str, tuple[dict[str, Any], list[str]]] = {
    **{
        f"{field} of no teacher": (
            {f"teacher.{field}": value},
            [
                f"teacher.{field}={value} has no effect with algorithm.distillation.{{tokens.weight=0,attention.weight"
                f"=0}}; choose algorithm=distill or attention_distill, or set {field} to {default}"
            ],
        )
        for field, value, default in (("dtype", "bfloat16", "float32"), ("max_tokens", 512, 4096))
    },
    **{
        f"{field} of no distillation of {part}": (
            {f"algorithm.distillation.{part}.{field}": value},
            [
                f"algorithm.distillation.{part}.{field}={value} has no effect with algorithm.distillation.{part}"
                f".weight=0; raise the weight, or set {field} to {default}"
            ],
        )
        for part, field, value, default in (
            ("tokens", "divergence", "forward_kl", "reverse_kl"),
            ("tokens", "jsd_beta", 0.3, 0.5),
            ("tokens", "top_k", 10, 64),
            ("attention", "divergence", "tv", "jsd"),
            ("attention", "reduction", "token_mean", "sequence_sum"),
        )
    },
    "an experiment's dtype of a teacher, without the rest of its settings": (
        {"teacher.dtype": "bfloat16", "teacher.max_tokens": 12287},
        ["teacher.dtype=bfloat16 has no effect", "teacher.max_tokens=12287 has no effect"],
    ),
    "a mixture at weight 0, with the divergence that would read it": (
        {"algorithm.distillation.tokens": {"weight": 0.0, "divergence": "jsd", "jsd_beta": 0.3, "top_k": 64}},
        ["tokens.divergence=jsd has no effect", "tokens.jsd_beta=0.3 has no effect"],
    ),
    **{
        f"{field} of a model that is not built": (
            {"model.path": "/model", f"model.tiny.{field}": value},
            [
                f"model.tiny.{field}={value} has no effect with model.path=/model, a model with its own; remove the "
                f"model, or set {field} to {default}"
            ],
        )
        for field, value, default in (("hidden", 96, 128), ("layers", 3, 4), ("vision_layers", 3, 2))
    },
    "glances in the demonstrations of a file": (
        {"data.demonstrations": "d.jsonl", "data.glance_share": 0.3},
        [
            "data.glance_share=0.3 has no effect with data.demonstrations=d.jsonl; set demonstrations to null, or set "
            "glance_share to 0.0"
        ],
    ),
    "a GPU's memory on the CPU": (
        {"rollout.gpu_memory_utilization": 0.5},
        [
            "rollout.gpu_memory_utilization=0.5 has no effect with cluster.gpus_per_rollout=0; set rollout.memory_gib "
            "instead, or set gpu_memory_utilization to 0.85"
        ],
    ),
    "the CPU's memory on a GPU": (
        {"rollout.memory_gib": 3.0, "cluster.gpus_per_rollout": 1},
        [
            "rollout.memory_gib=3.0 has no effect with cluster.gpus_per_rollout=1; set rollout.gpu_memory_utilization "
            "instead, or set memory_gib to 1.0"
        ],
    ),
    "a wait for weights in one process": (
        {**_LOCAL, "rollout": HF | {"weight_timeout_s": 3.0}},
        [
            "rollout.weight_timeout_s=3.0 has no effect with cluster.kind=local; choose cluster=ray, or set "
            "weight_timeout_s to 120"
        ],
    ),
    "questions of evaluations that do not take place": (
        {"evaluation.every": 0, "evaluation.every_questions": 7},
        ["evaluation.every_questions=7 has no effect with evaluation.every=0; raise evaluation.every, or set"],
    ),
    **{
        f"{field} of steering that is off": (
            {f"intervention.{field}": value},
            [
                f"intervention.{field}={shown} has no effect with intervention.image=0 and intervention.system=0; "
                f"raise one, or set {field} to {default}"
            ],
        )
        for field, value, shown, default in (
            ("layers", (1,), "[1]", "all"),
            ("heads", (0, 2), "[0, 2]", "all"),
            ("space", "logits", "logits", "weights"),
        )
    },
    "a limit of no benchmark": (
        {"evaluation.benchmark.limit": 3},
        [
            "evaluation.benchmark.limit=3 has no effect with evaluation.benchmark.name=null; set name and folder, or "
            "set limit to null"
        ],
    ),
    **{
        f"an {field} tolerance of texts": (
            {f"reward.tolerance.{field}": 0.1},
            [
                f"reward.tolerance.{field}=0.1 has no effect with reward.verifier=exact; choose reward=numeric, or set "
                f"{field} to {default}"
            ],
        )
        for field, default in (("absolute", "1e-06"), ("relative", "0.0"))
    },
    "a tolerance of kinds that are texts": (
        {"reward.tolerance.absolute": 0.1, "reward.kinds": {"count": "ocr"}},
        ["reward.tolerance.absolute=0.1 has no effect with reward.verifier=exact and these reward.kinds; choose"],
    ),
    "bounds of a policy loss without weight": (
        _NO_POLICY_LOSS | {"algorithm.policy_loss.clip_low": 0.1},
        [
            "algorithm.policy_loss.clip_low=0.1 has no effect with algorithm.policy_weight=0; raise the weight, or set "
            "clip_low to 0.2"
        ],
    ),
    "bounds of another preset's loss without weight": (
        _NO_POLICY_LOSS | {"algorithm.policy_loss": {"name": "gspo", "clip_low": 0.2, "clip_high": 4e-4}},
        ["algorithm.policy_loss.clip_low=0.2 has no effect", "raise the weight, or set clip_low to 0.0003"],
    ),
    "top tokens of a divergence without any": (
        {"algorithm.policy_loss": _DPPO, "algorithm.correction.kind": "none"},
        [
            "algorithm.policy_loss.top_k=5 has no effect with algorithm.policy_loss.divergence=binary_tv; set the "
            "divergence to top_k_tv or top_k_kl, or set top_k to 20"
        ],
    ),
}
