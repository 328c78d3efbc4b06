"""Media are wanted before they are needed, in RL and in sft."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.config.data import DataConfig
from ral_system.controller import supervised
from ral_system.observability.progress import PhaseTimer
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import media_ahead, train_prompts
from ral_system.types import Media, TrainPlan
from tests.unit.data.test_preparation import Bench, rows


class Ahead:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self.waited: list[str] = []

    def want(self, media: Iterable[Media]) -> None:
        self.wanted += [medium.digest for medium in media if medium.digest not in self.wanted]

    def wait(self, media: Iterable[Media]) -> None:
        self.waited += [medium.digest for medium in media]
        assert set(self.waited) <= set(self.wanted)


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]) -> Bench:
    made = Bench(tmp_path, tiny_model, make_config)
    made.write(rows(tmp_path, 20))
    return made


def test_rl_looks_ahead_by_the_batches_that_are_under_way(bench: Bench) -> None:
    prompts = bench.prompts(
        bench.prepare("data.held_out=0.2", "algorithm.prompts_per_step=3", "algorithm.max_staleness=1")
    )
    ahead = Ahead()
    prompt = train_prompts(bench.config.algorithm, prompts, ahead)  # type: ignore[arg-type]
    assert prompt(0) == prompts.question("train", 0)
    expected = [prompts.question("train", i).media[0].digest for i in range(9)]
    assert ahead.wanted == expected and ahead.waited == expected[:1]


def test_sft_decodes_a_batch_while_the_one_before_is_trained_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = bench.prompts(
        bench.prepare("data.held_out=0.2", "stages=[sft,rl]", "sft.batch=4", "sft.max_steps=2", "sft.evaluate_from=9")
    )
    ahead, waited_for = Ahead(), []

    @contextmanager
    def recorded(data: DataConfig, folder: RunFolder, cache_gib: float) -> Iterator[Ahead]:
        yield ahead

    class Learner:
        shards = 1

        def fit(self, plan: TrainPlan, index: int) -> Callable[[], dict[str, float]]:
            waited_for.append(list(ahead.waited[:4]))
            return dict

        def save(self, folder: Path) -> None:
            pass

        save_model = save

    monkeypatch.setattr(supervised, "media_ahead", recorded)
    monkeypatch.setattr(supervised, "_held_out_accuracy", lambda context, step: (0.0, {}))
    context: Any = SimpleNamespace(
        config=bench.config,
        compares=False,
        folder=RunFolder(tmp_path),
        origin=lambda: "model",
        prompts=prompts,
        roles=SimpleNamespace(learner=Learner()),
        residency=MagicMock(),
        metrics=MagicMock(lines=0),
        log=MagicMock(),
        rollouts=MagicMock(lines=0),
        timer=PhaseTimer(),
        progress=MagicMock(),
    )
    supervised.run_supervised(context, "sft")
    first = [prompts.demonstration("sft", "train", i).prompt.media[0].digest for i in range(4)]
    assert waited_for == [first, first] and len(ahead.waited) == 12  # the third batch was drawn, and not needed


def test_generated_pictures_need_no_processes(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config()
    with media_ahead(config.data, RunFolder(tmp_path), 1.0) as ahead:
        assert ahead is None
