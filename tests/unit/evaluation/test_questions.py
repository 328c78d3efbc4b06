"""What an evaluation asks, and the figures of the answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.benchmarks.item import Item
from ral_system.config.commands import EvaluateConfig
from ral_system.errors import DataError
from ral_system.evaluation import questions as figures
from ral_system.evaluation.questions import Figures, Questions
from ral_system.evaluation.record_files import write_scores
from ral_system.evaluation.subject import Subject
from ral_system.media.store import MediaStore
from ral_system.report.answers_page import Answered
from ral_system.tasks.open import QuestionSettings
from ral_system.types import Completion, FinishReason, Media, Prompt
from tests.unit.benchmarks.released import write_json
from tests.unit.media.test_decoders import picture

Make = Callable[..., EvaluateConfig]
BENCHMARK = ("data=files", "data.system_prompt=answer", "stages=[rl]")


def said(id: str, text: str) -> Completion:
    return Completion(id, 0, (1,), (), f"<think>so</think><answer>{text}</answer>", FinishReason.STOP, 0)


def test_held_out_questions_about_the_same_picture_are_drawn_together(make_config: Make) -> None:
    """One of two questions is right for each picture: whatever is drawn, half of all are right."""
    pictures = {id: (Media(id[0], 56, 56),) for id in ("p0", "q0", "p1", "q1")}
    prompts = [Prompt(id, "count", "how many ?", "1", media, (1,)) for id, media in pictures.items()]
    config = make_config("reward.workers=1", kind=EvaluateConfig)
    answers = {id: [said(id, "1" if id in ("p0", "q1") else "2")] for id in pictures}
    found = figures._held_out_figures(figures.Judging.of(config), "greedy", Questions(prompts, 4, 4), answers)
    assert found.values["eval/accuracy"] == pytest.approx(0.5)
    assert found.intervals == {
        "eval/accuracy": (0.5, 0.5),
        "eval/accuracy/count": (0.5, 0.5),
        "eval/format_rate": (1.0, 1.0),
    }


def test_a_limited_benchmark_says_so() -> None:
    def title(total: int, available: int) -> str:
        found = figures._benchmark_figures(
            "chartqa", 1, "greedy", Questions([prompt], total, available, items), {"a": [said("a", "7")]}
        )
        assert (found.record["questions"], found.record["left_out"]) == (1, total - 1)
        assert found.record["available"] == available and found.values["chartqa/score"] == 100
        return found.title

    prompt, items = Prompt("a", "human", "?", "7", (), (1,)), {"a": Item("a", "human", "?", (), ("7",))}
    assert title(3, 3) == "chartqa: 1 of 3 questions, greedy"
    assert title(3, 2500) == "chartqa, limited to 3 of 2500: 1 of 3 questions, greedy"


def charts(folder: Path, there: int, missing: int) -> None:
    write_json(folder / "test" / "test_augmented.json", [])
    rows = [{"imgname": f"{n}.png", "query": "How many ?", "label": "7"} for n in range(there + missing)]
    write_json(folder / "test" / "test_human.json", rows)
    (folder / "test" / "png").mkdir(exist_ok=True)
    for n in range(there):
        (folder / "test" / "png" / f"{n}.png").write_bytes(picture(56).encoded)


def test_a_benchmark_of_which_too_much_is_broken_is_refused(
    make_config: Make, tiny_model: Path, tmp_path: Path
) -> None:
    charts(tmp_path, there=3, missing=2)
    given = (*BENCHMARK, "evaluation.benchmark.name=chartqa", f"evaluation.benchmark.folder={tmp_path}")

    def asked(max_broken: float) -> Questions:
        config = make_config(*given, f"data.max_broken={max_broken}", kind=EvaluateConfig)
        engine = (config.rollout, config.seed, 1, config.intervention)
        subject = Subject(tiny_model, tmp_path / "run", MediaStore(tmp_path / "media"), *engine)
        return figures.asked(config.evaluation, QuestionSettings.of(config), subject)

    reason = r"2 of 5 questions cannot be asked \(data.max_broken=0.3\), most often: … no such file below"
    with pytest.raises(DataError, match=rf"{reason} .*/quarantine\.jsonl; correct them, or raise data\.max_broken"):
        asked(0.3)
    quarantine = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in quarantine] == ["test_human.json:3", "test_human.json:4"]
    found = asked(0.4)
    assert (len(found.prompts), len(found.bad), found.total) == (3, 2, 5)
    answers = {prompt.id: [said(prompt.id, "7")] for prompt in found.prompts}
    shown = figures._benchmark_figures("chartqa", 1, "greedy", found, answers).left_out
    assert shown.startswith("2 left out, most often: … no such file below")
    charts(tmp_path, there=0, missing=1)
    (tmp_path / "test" / "png" / "0.png").unlink()
    with pytest.raises(DataError, match="1 of 1 questions cannot be asked"):
        asked(1)


def test_scores_are_kept_by_question(tmp_path: Path) -> None:
    question = {"id": "a", "kind": "human", "question": "?", "answer": "7 | seven", "media": []}
    found = Figures("", {}, "", {}, {}, {}, [Answered(question, ("7", "8"), (1.0, 0.0))], {})
    write_scores(tmp_path, found)
    assert json.loads((tmp_path / "scores.jsonl").read_text()) == {
        "id": "a",
        "category": "human",
        "references": "7 | seven",
        "scores": [1.0, 0.0],
    }
