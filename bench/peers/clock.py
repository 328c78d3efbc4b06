"""Seconds of batches and their phases, from what a trainer reports of its progress."""

from __future__ import annotations

import time


class Clock:
    """Seconds of each batch and its phases. A batch lasts from its generation to the next one's."""

    def __init__(self) -> None:
        self.batches: list[dict[str, float]] = []
        self._began = self._step_began = self._step_ended = 0.0
        self._made_s = 0.0

    def batch_begins(self) -> None:
        """End the batch before, if there is one."""
        self.ended()
        self._began = time.perf_counter()
        self.batches.append(dict.fromkeys(("data_s", "rollout_s", "score_s", "update_s"), 0.0))

    def rolled_out(self, seconds: float, prompt_tokens: float, response_tokens: float) -> None:
        """Record the generation of the batch that has begun."""
        self.batches[-1] |= {"rollout_s": seconds, "prompt_tokens": prompt_tokens, "response_tokens": response_tokens}

    def made(self) -> None:
        """Record that the batch is generated and scored; what is left of its step is an update."""
        self._made_s = time.perf_counter() - self._began
        self.batches[-1]["score_s"] = self._made_s - self.batches[-1]["rollout_s"]

    def step_begins(self) -> None:
        """Start an optimiser step, which may begin with making a batch. Since the last one, data were loaded."""
        self._step_began, self._made_s = time.perf_counter(), 0.0
        if self.batches:
            self.batches[-1]["data_s"] += self._step_began - self._step_ended

    def step_ended(self) -> None:
        """Count an optimiser step, without the making of a batch in it."""
        self._step_ended = time.perf_counter()
        self.batches[-1]["update_s"] += self._step_ended - self._step_began - self._made_s

    def ended(self) -> None:
        """Set the length of the batch that has begun."""
        if self.batches:
            self.batches[-1]["seconds"] = time.perf_counter() - self._began
