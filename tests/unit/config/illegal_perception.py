"""What is refused of `algorithm.perception`: overrides, then what the message must contain."""

from typing import Any

from tests.unit.config.whole_groups import FILES

PAPO = {"name": "papo", "weight": 0.02, "masked": 0.6, "entropy_weight": 0.0, "entropy": "sampled"}
VPPO = {"name": "vppo", "masked": 0.5, "kept_tokens": 0.4, "least_factor": 0.9}
VGPO = {
    **{"name": "vgpo", "late_weight": 0.3, "late_share": 0.2, "response_score": "mean"},
    **{"least_token_factor": 0.1, "most_token_factor": 2.0},
    **{"least_response_factor": 0.9, "most_response_factor": 2.0},
}

PERCEPTION: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a kind of entropy that nothing weighs": (
        {"algorithm.perception": PAPO | {"entropy": "exact"}},
        [
            "algorithm.perception.entropy=exact has no effect with algorithm.perception.entropy_weight=0",
            "set entropy to sampled",
        ],
    ),
    "an entropy that is raised and lowered": (
        {"algorithm.perception": PAPO | {"entropy_weight": 0.03}, "algorithm.entropy_coefficient": 0.01},
        ["algorithm.perception.entropy_weight=0.03", "algorithm.entropy_coefficient=0.01", "set one of them to 0"],
    ),
    "a perception that chooses every token and response": (
        {"algorithm.perception": VPPO | {"kept_tokens": 1.0, "least_factor": 1.0}},
        ["algorithm.perception.kept_tokens=1", "least_factor=1", "choose algorithm/perception=none"],
    ),
    "factors that are bounded to 1": (
        {
            "algorithm.perception": VGPO
            | dict.fromkeys(("least_token_factor", "most_token_factor", "least_response_factor"), 1.0)
            | {"most_response_factor": 1.0}
        },
        ["algorithm.perception.least_token_factor", "are all 1", "choose algorithm/perception=none"],
    ),
    "bounds without 1 between them": (
        {"algorithm.perception": VGPO | {"least_token_factor": 1.1}},
        ["algorithm.perception.least_token_factor=1.1: out of range; set it to 1 or less"],
    ),
    "late tokens that nothing raises": (
        {"algorithm.perception": VGPO | {"late_weight": 0.0, "late_share": 0.5}},
        [
            "algorithm.perception.late_share=0.5 has no effect with algorithm.perception.late_weight=0",
            "set late_share to 0.2",
        ],
    ),
    "a view without a picture": (
        {"algorithm.perception": VPPO | {"masked": 0.0}},
        ["algorithm.perception.masked=0.0: out of range; set it above 0"],
    ),
    **{
        f"{perception['name']} without the loss that it guides": (
            {
                "algorithm.perception": perception,
                "algorithm.policy_weight": 0.0,
                "teacher.path": "/t",
                "algorithm.distillation.tokens.weight": 1.0,
            },
            [
                f"algorithm.perception.name={perception['name']} with algorithm.policy_weight=0",
                "raise the weight, or choose algorithm/perception=none",
            ],
        )
        for perception in (PAPO, VPPO, VGPO)
    },
    "a perception by its name alone": (
        {"algorithm.perception": "papo"},
        ["algorithm.perception='papo': an objective is chosen as a group, algorithm/perception=papo"],
    ),
    **{
        f"{perception['name']} on files of text alone": (
            {"data": FILES, "stages": ["rl"], "algorithm.perception": perception},
            [
                f"algorithm.perception.name={perception['name']} has no effect on text alone",
                "no data.sources.NAME.columns.images or videos is set",
                "choose algorithm/perception=none",
            ],
        )
        for perception in (PAPO, VPPO, VGPO)
    },
    "files of text alone, asked blind": (
        {"data": FILES, "stages": ["rl"], "evaluation.blind": True},
        ["evaluation.blind=true has no effect on text alone", "set it to false"],
    ),
}
