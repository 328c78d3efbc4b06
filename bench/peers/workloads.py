"""Work that both sides do: the questions, and how many responses and updates a batch has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """Questions of one shape. `overrides` are those of `ral-train` that make them."""

    name: str
    overrides: tuple[str, ...]
    about: str


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("quickstart", ("experiment=quickstart",), "boards of 3 × 3 cells"),
        Workload("boards", ("experiment=quickstart", "data.grid=8", "data.objects=12"), "boards of 8 × 8 cells"),
        Workload(
            "videos",
            ("experiment=frames_quickstart", "data.max_frames=32"),
            "videos of 32 frames; for TRL 16 pictures, one for each pair of frames",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that both sides share. A batch is `prompts` × `completions` responses and `updates` optimiser updates."""

    prompts: int
    completions: int
    updates: int
    new_tokens: int
    """Length of every response of the random model; the most that one of a trained model can have."""
    batches: int
    """Measured batches of a process; one more before them is not counted."""
    hidden: int
    """Width of the random model."""
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    kl: float = 0.0
    """Coefficient of the KL to the reference; 0: neither side has a reference."""

    @property
    def in_an_update(self) -> int:
        """Responses in an optimiser update."""
        return self.prompts * self.completions // self.updates

    @property
    def drawn(self) -> int:
        """Prompts that a process needs."""
        return self.prompts * (self.batches + 1)

    def our_overrides(self) -> list[str]:
        """Return the same for `ral-train`, with the attention term on."""
        return [
            f"algorithm.prompts_per_step={self.prompts}",
            f"algorithm.completions_per_prompt={self.completions}",
            f"algorithm.updates_per_step={self.updates}",
            f"algorithm.steps={self.batches + 1}",
            f"algorithm.kl.coefficient={self.kl}",
            "algorithm.attention.weight=1",
            f"rollout.max_new_tokens={self.new_tokens}",
            f"rollout.temperature={self.temperature}",
            f"learner.learning_rate={self.learning_rate}",
            f"learner.betas=[{self.betas[0]},{self.betas[1]}]",
            f"learner.max_grad_norm={self.max_grad_norm}",
        ]


FULL = Shape(prompts=16, completions=8, updates=4, new_tokens=12, batches=10, hidden=128)
DRY = Shape(prompts=4, completions=4, updates=2, new_tokens=4, batches=1, hidden=64)
