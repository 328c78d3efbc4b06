"""Interface between a run and its data: questions to answer, and demonstrations to imitate."""

from __future__ import annotations

from typing import Protocol

from ral_system.config.choices import SupervisedStage
from ral_system.types import Prompt, Sample, Split


class Questions(Protocol):
    """Every prompt is a function of the data's configuration and its index alone, so a position resumes a run."""

    def question(self, split: Split, index: int) -> Prompt:
        """The `index`-th question to be answered. Training questions have no end; ids are unique within a batch."""
        ...

    def held_out(self, count: int) -> list[Prompt]:
        """The first `count` held-out questions; all where there are fewer."""
        ...


class Prompts(Questions, Protocol):
    """Questions, and demonstrations of how to answer them."""

    def demonstration(self, stage: SupervisedStage, split: Split, index: int, *, seed: int = 0) -> Sample:
        """The `index`-th example to imitate; `seed` says where in the training examples a run begins."""
        ...
