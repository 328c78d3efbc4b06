"""Answers are written as they come, and what is written is not asked again."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ral_system.evaluation.answers import answers_file, collect_answers
from ral_system.types import Completion, Completions, FinishReason, Prompt, Sampling

PROMPTS = [Prompt(f"p{i}", "k", "q", "a", (), (1, 2, i)) for i in range(4)]
SAMPLING = Sampling(completions=2, temperature=1.0, max_new_tokens=4, seed=0)


class Engine:
    """Answers in an odd order; dies after `until` completions."""

    def __init__(self, until: int = 99) -> None:
        self.until, self.asked = until, [""]
        self.asked.clear()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        self.asked += [prompt.id for prompt in prompts]
        order = [(p, i) for i in reversed(range(sampling.completions)) for p in prompts]
        for count, (prompt, index) in enumerate(order):
            if count == self.until:
                raise KeyboardInterrupt
            text = f"{prompt.id} {index}"
            yield Completion(prompt.id, index, (7, 2), (-0.1, -0.2), text, FinishReason.STOP, 0, seed=index)

    def answers(self, path: Path, prompts: Sequence[Prompt] = PROMPTS) -> tuple[dict[str, list[str]], list[int]]:
        shown: list[int] = []
        found = collect_answers(lambda: self.generate, prompts, SAMPLING, path, shown.append)
        assert all(c.token_ids == (7, 2) and c.seed == c.index for group in found.values() for c in group)
        return {id: [c.text for c in group] for id, group in found.items()}, shown


WHOLE = {p.id: [f"{p.id} 0", f"{p.id} 1"] for p in PROMPTS}


def test_every_prompt_gets_its_answers_in_order(tmp_path: Path) -> None:
    found, shown = Engine().answers(tmp_path / "a.jsonl")
    assert found == WHOLE and list(found) == [p.id for p in PROMPTS]
    assert shown == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("until", [0, 1, 4, 5, 7])
def test_an_interrupted_evaluation_asks_for_the_rest_alone(tmp_path: Path, until: int) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Engine(until).answers(path)
    with path.open("a") as file:
        file.write('{"prompt_id": "p3", "ind')
    engine = Engine()
    found, shown = engine.answers(path)
    complete = max(0, until - 4)  # in the order above
    assert engine.asked == [p.id for p in PROMPTS[complete:]]
    assert found == WHOLE
    assert shown == list(range(complete, 5))
    idle = Engine(until=0)
    assert idle.answers(path)[0] == WHOLE and idle.asked == []


def test_a_complete_evaluation_starts_no_engine(tmp_path: Path) -> None:
    Engine().answers(tmp_path / "a.jsonl")

    def forbidden() -> None:
        raise AssertionError("started")

    found = collect_answers(forbidden, PROMPTS, SAMPLING, tmp_path / "a.jsonl", lambda done: None)  # type: ignore[arg-type]
    assert len(found) == 4


def test_what_decides_over_answers_names_their_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = answers_file(tmp_path, tmp_path, PROMPTS, SAMPLING)
    assert answers_file(tmp_path, tmp_path, PROMPTS, SAMPLING) == first
    others = {
        answers_file(tmp_path, tmp_path, PROMPTS[:3], SAMPLING),
        answers_file(tmp_path, tmp_path, PROMPTS, Sampling(2, 0.5, 4, 0)),
        answers_file(tmp_path, tmp_path, PROMPTS, SAMPLING, "steered"),
    }
    (tmp_path / "model.safetensors").write_bytes(b"another")
    others.add(answers_file(tmp_path, tmp_path, PROMPTS, SAMPLING))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    others.add(answers_file(tmp_path, tmp_path, PROMPTS, SAMPLING))
    assert len(others | {first}) == 6
