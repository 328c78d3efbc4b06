from dataclasses import replace

import pytest

from ral_system.errors import GateError
from ral_system.rollout.gates import check_completion, check_prompt_ids
from ral_system.rollout.seeds import completion_seed
from ral_system.types import Completion, FinishReason, Media, Prompt

IMAGE, STOP = 9, 2
MEDIA = (Media("a" * 64, 56, 56), Media("b" * 64, 28, 28))
PROMPT = Prompt("train/1", "count", "q", "a", MEDIA, (1, IMAGE, IMAGE, IMAGE, 3, IMAGE, 4))
COMPLETION = Completion("train/1", 0, (7, STOP), (-0.5, -0.1), "seven", FinishReason.STOP, 4)


@pytest.mark.parametrize(
    ("engine_ids", "complaint"),
    [
        ((1, IMAGE, IMAGE, IMAGE, 5, IMAGE, 4), "at token 4 ours is 3, the engine's 5"),
        (
            (1, IMAGE, IMAGE, IMAGE, 3, IMAGE),
            "to 6 tokens, the data pipeline to 7; at token 6 ours is 4, the engine's mis",
        ),
        ((1, IMAGE, IMAGE, IMAGE, 3, IMAGE, 4, 4), "at token 7 ours is missing, the engine's 4"),
    ],
)
def test_prompt_ids_must_come_back_unchanged(engine_ids: tuple[int, ...], complaint: str) -> None:
    check_prompt_ids(PROMPT, list(PROMPT.token_ids))
    with pytest.raises(
        GateError, match=f"prompt train/1: .*{complaint}.*; change the text there .* or choose rollout=hf"
    ):
        check_prompt_ids(PROMPT, engine_ids)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"token_ids": (IMAGE, STOP)}, "token 0 is 9, which is banned"),
        ({"token_ids": (), "log_probs": ()}, "0 tokens with 0 log-probs"),
        ({"log_probs": (-0.5,)}, "2 tokens with 1 log-probs"),
        ({"log_probs": (-0.5, float("nan"))}, "token 1 has log-prob nan"),
        ({"log_probs": (float("-inf"), -0.5)}, "token 0 has log-prob -inf"),
        ({"log_probs": (0.5, -0.5)}, "token 0 has log-prob 0.5"),
        ({"finish_reason": FinishReason.LENGTH}, "finish reason length but its last token is 2"),
        ({"token_ids": (7, 7)}, "finish reason stop but its last token is 7"),
        ({"prompt_id": "train/2"}, "belongs to prompt train/1"),
    ],
)
def test_untrainable_completions_are_refused(change: dict, complaint: str) -> None:
    check_completion(PROMPT, COMPLETION, banned_token_ids={IMAGE}, stop_token_ids={STOP})
    with pytest.raises(GateError, match=complaint):
        check_completion(PROMPT, replace(COMPLETION, **change), banned_token_ids={IMAGE}, stop_token_ids={STOP})


def test_seeds_are_stable_and_distinct() -> None:
    assert completion_seed(7, "train/17", 3) == 2750865820116262922
    seeds = {completion_seed(s, f"train/{p}", i) for s in range(3) for p in range(20) for i in range(8)}
    assert len(seeds) == 3 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert completion_seed(1, "train/1", 11) != completion_seed(1, "train/11", 1)


def test_a_text_may_end_a_response_too() -> None:
    going_on = replace(
        COMPLETION, token_ids=(7, 8), log_probs=(-0.1, -0.2), finish_reason=FinishReason.STOP, text="a </answer>"
    )
    check_completion(PROMPT, going_on, banned_token_ids={IMAGE}, stop_token_ids={STOP}, stop_text="</answer>")
    for wrong in (replace(going_on, text="a"), replace(going_on, finish_reason=FinishReason.LENGTH)):
        with pytest.raises(GateError, match="finish reason"):
            check_completion(PROMPT, wrong, banned_token_ids={IMAGE}, stop_token_ids={STOP}, stop_text="</answer>")
