"""A run prints after the first step, and at its end, whether right and wrong responses look at different places."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from ral_system.config.commands import TrainConfig
from ral_system.controller import rl
from ral_system.controller.residency import residency
from ral_system.controller.stage import StageContext
from ral_system.observability.progress import PhaseTimer, StageProgress
from ral_system.runs.folder import RunFolder
from ral_system.types import Sample, TrainPlan, VisualAttention
from tests.unit.controller.fakes import Fakes, prompt

LINE = "contrast of where right and wrong responses look:"


class Learner(Fakes):
    """Measures these contrasts, step by step; None where rewards do not differ."""

    def __init__(self, contrasts: Sequence[float | None]) -> None:
        super().__init__()
        self.contrasts = contrasts

    def update(self, plan: TrainPlan, index: int, *scores: Any) -> Callable[[], Mapping[str, float]]:
        found, contrast = super().update(plan, index, *scores), self.contrasts[self.loaded_version]
        return lambda: {**found(), **({} if contrast is None else {"attention/contrast": contrast})}

    def look(self, samples: Sequence[Sample]) -> dict[str, VisualAttention]:
        return {sample.id: VisualAttention(()) for sample in samples}

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    save_model = save


@pytest.mark.parametrize(
    ("contrasts", "printed"),
    [((1.04, None, 2.5), ["1.04", "1.77"]), ((None, 3.0, 1.0), ["2.00"]), ((None, None, None), [])],
    ids=["mean over the steps that have it", "not in the first step", "never"],
)
def test_the_contrast_is_printed(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contrasts: tuple[float | None, ...],
    printed: list[str],
) -> None:
    algorithm = config.algorithm.model_copy(update={"steps": 3})
    settings = config.model_copy(update={"algorithm": algorithm})
    monkeypatch.setattr(rl, "media_ahead", lambda *_: nullcontext())
    monkeypatch.setattr(rl, "train_prompts", lambda *_: prompt)
    said, roles, timer = io.StringIO(), Learner(contrasts), PhaseTimer()
    context = StageContext(
        config=settings,
        folder=RunFolder(tmp_path),
        model=tmp_path / "start",
        prompts=SimpleNamespace(held_out=lambda count: [prompt(i) for i in range(2)]),  # type: ignore[arg-type]
        roles=roles,  # type: ignore[arg-type]
        residency=residency(roles, timer),  # type: ignore[arg-type]
        metrics=MagicMock(lines=0),
        rollouts=MagicMock(lines=0),
        timer=timer,
        progress=StageProgress("rl", 3, console=Console(file=said, width=200)),
        peaks=MagicMock(take=dict),
        compares=False,
    )
    rl.run_rl(context)
    lines = [line for line in said.getvalue().splitlines() if LINE in line]
    assert [line.split(LINE)[1] for line in lines] == [f" {value} (near 1 they look alike)" for value in printed]
    result = context.folder.result("rl")
    assert result is not None and result["contrast"] == (pytest.approx(float(printed[-1])) if printed else None)
