"""The overlapped loop: the next batch is generated and judged while this one trains.

    controller   take batch k ─► publish weights ─► start batch k+1 ─► score, update on batch k ─► take batch k+1 ─► …
    engines                                         └── generate and judge batch k+1 ──────────┘

Weights change between two batches only, so no completion mixes versions. A batch is trained on one version after it was
made; its old log-probs and attention are computed at the weights that made it, which the learner keeps for that.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ral_system.config.schema import RunConfig
from ral_system.controller.loop import Step, TrainingLoop
from ral_system.controller.sampling import Batch, Sampler
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Roles
from ral_system.types import Prompt


class StalenessBound:
    """Raises where data is consumed that is older than allowed."""

    def __init__(self, max_staleness: int) -> None:
        self._max = max_staleness

    def check(self, made: int, now: int) -> int:
        """How many versions old a batch is that was made with weights `made`."""
        if not 0 <= now - made <= self._max:
            raise GateError(
                f"a batch made with weights {made} would be trained on at {now}: {now - made} versions, more than "
                f"algorithm.max_staleness={self._max}"
            )
        return now - made


class PipelinedLoop(TrainingLoop):
    """`TrainingLoop` that generates ahead, in a thread of its own. `close` it; at a pause nothing is under way."""

    def __init__(
        self, config: RunConfig, roles: Roles, train_prompt: Callable[[int], Prompt], timer: PhaseTimer
    ) -> None:
        super().__init__(config, roles, train_prompt, timer)
        self._sampler = Sampler(config, roles, train_prompt, PhaseTimer(), ahead=True)
        self._bound = StalenessBound(config.algorithm.max_staleness)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._ahead: Future[Batch] | None = None
        self._published = -1

    def publish(self) -> int:
        """As in the synchronous loop; nothing may be generated meanwhile."""
        self._published = self.version
        return super().publish()

    def step(self, *, pause_after: bool = True) -> Step:
        """Train on one batch while the next is made; with `pause_after` there is no next one yet."""
        with self._timer.phase("wait"):
            batch = self._ahead.result() if self._ahead else self._sampler.draw(self.next_prompt, self.version)
        self._ahead = None
        tensors_verified = 0 if self._published == self.version else self.publish()
        if not pause_after:
            following = self.next_prompt + batch.drawn
            self._ahead = self._thread.submit(self._sampler.draw, following, self.version)
        staleness = self._bound.check(batch.version, self.version)
        rollouts, metrics = self._train(batch)
        if pause_after:
            tensors_verified += self.publish()
        metrics |= {"pipeline/staleness": float(staleness), "gate/tensors_verified": float(tensors_verified)}
        return self._finished(rollouts, metrics)

    def close(self) -> None:
        """Start nothing more; what is under way ends with the roles."""
        self._thread.shutdown(wait=False, cancel_futures=True)
