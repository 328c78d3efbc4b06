"""What an evaluation asks, and the figures of the answers."""

from collections.abc import Callable

import pytest

from launch import figures
from launch.figures import Questions
from ral_system.benchmarks.item import Item
from ral_system.config.schema import RunConfig
from ral_system.types import Completion, FinishReason, Media, Prompt

Make = Callable[..., RunConfig]
BENCHMARK = ("data=files", "data.system_prompt=answer", "stages=[rl]", "evaluation.benchmark.folder=/released")


def said(id: str, text: str) -> Completion:
    return Completion(id, 0, (1,), (), f"<think>so</think><answer>{text}</answer>", FinishReason.STOP, 0)


def test_held_out_questions_about_the_same_picture_are_drawn_together(make_config: Make) -> None:
    """Of each picture one question of two is right: whatever is drawn, so are half of all."""
    pictures = {id: (Media(id[0], 56, 56),) for id in ("p0", "q0", "p1", "q1")}
    prompts = [Prompt(id, "count", "how many ?", "1", media, (1,)) for id, media in pictures.items()]
    answers = {id: [said(id, "1" if id in ("p0", "q1") else "2")] for id in pictures}
    found = figures._held_out_figures(make_config("reward.workers=1"), Questions(prompts, 4, 4), answers)
    assert found.values["eval/accuracy"] == pytest.approx(0.5)
    assert found.intervals == {
        "eval/accuracy": (0.5, 0.5),
        "eval/accuracy/count": (0.5, 0.5),
        "eval/format_rate": (1.0, 1.0),
    }


def test_a_limited_benchmark_says_so(make_config: Make) -> None:
    def title(total: int, available: int) -> str:
        found = figures._benchmark_figures(
            config, Questions([prompt], total, available, items), {"a": [said("a", "7")]}
        )
        assert (found.record["questions"], found.record["left_out"]) == (1, total - 1)
        assert found.record["available"] == available and found.values["chartqa/score"] == 100
        return found.title

    prompt, items = Prompt("a", "human", "?", "7", (), (1,)), {"a": Item("a", "human", "?", (), ("7",))}
    config = make_config(*BENCHMARK, "evaluation.benchmark.name=chartqa")
    assert title(3, 3) == "chartqa: 1 of 3 questions, greedy"
    assert title(3, 2500) == "chartqa, limited to 3 of 2500: 1 of 3 questions, greedy"
