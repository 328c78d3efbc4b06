"""The overlapped loop: the next batches are generated and judged while one trains.

    controller   train on batch k (version k) ─► publish version k + 1 ─► train on batch k + 1 ─► …
    engines      generate and judge batches k + 1 … k + N, one after the other

N is `algorithm.max_staleness`. With `rollout.on_new_weights=finish` weights change between two batches only: batch
k + N is made with version k, so the run repeats bit for bit. With `continue` and `discard` engines take a new version
at once, in the middle of a response, at a token that depends on timing.

Old log-probs and attention are those of the weights that made a token, which the learner keeps for that: a response of
several versions is scored at each of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ral_system.config.commands import TrainConfig
from ral_system.controller.loop import Step, TrainingLoop
from ral_system.controller.residency import Residency
from ral_system.controller.sampling import Batch
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Roles
from ral_system.types import Prompt
from ral_system.weights.publish import Published


class StalenessBound:
    """Guard that raises when data older than allowed is consumed."""

    def __init__(self, max_staleness: int) -> None:
        self._max = max_staleness

    def check(self, made: int, now: int) -> int:
        """Return how many versions old a batch made with weights `made` is."""
        if not 0 <= now - made <= self._max:
            raise GateError(
                f"a batch made with weights {made} would be trained on at {now}: {now - made} versions, more than "
                f"algorithm.max_staleness={self._max}"
            )
        return now - made


class PipelinedLoop(TrainingLoop):
    """`TrainingLoop` that generates ahead in a separate thread. `close` it; at a pause no work is unfinished."""

    def __init__(
        self,
        config: TrainConfig,
        roles: Roles,
        train_prompt: Callable[[int], Prompt],
        timer: PhaseTimer,
        residency: Residency,
    ) -> None:
        self._ahead_timer = PhaseTimer()
        super().__init__(config, roles, train_prompt, timer, residency, ahead=self._ahead_timer)
        self._bound = StalenessBound(config.algorithm.max_staleness)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._batches: deque[Future[Batch]] = deque()
        self._loads: deque[Future[int]] = deque()
        self._next_draw = 0

    def step(self, *, until_pause: int = 1) -> Step:
        """Train on one batch while the next are made, unless they would come after a pause.

        `until_pause`: steps from this one, which counts, to the one after which nothing may be under way.
        """
        if not self._batches:
            self._next_draw = self.next_prompt
        while len(self._batches) < self._wanted(until_pause):
            self._batches.append(self._thread.submit(self._draw, self.version, list(self._loads)))
        with self._timer.phase("wait"):
            batch = self._batches.popleft().result()
        staleness = self._bound.check(batch.version, self.version)
        rollouts, metrics = self._train(batch)
        tensors_verified = self._hand_over(until_pause)
        completions = [rollout.completion for rollout in rollouts]
        metrics |= {
            "pipeline/staleness": float(staleness),
            "pipeline/switched": sum(bool(c.switches) for c in completions) / len(completions),
            "pipeline/restarts": float(sum(c.restarts for c in completions)),
            "gate/tensors_verified": float(tensors_verified),
        }
        return self._finished(rollouts, metrics)

    def close(self) -> None:
        """Start nothing more; unfinished work ends with the roles."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _wanted(self, until_pause: int) -> int:
        """Return how many batches must have begun, including the next one to train on."""
        return min(self._config.algorithm.max_staleness + 1, until_pause)

    def _hand_over(self, until_pause: int) -> int:
        """Give the engines the new version: at once, or when they are between two batches; tensors verified since."""
        if until_pause == 1 or self._config.rollout.on_new_weights != "finish":
            return self._verified() + self.publish()
        with self._timer.phase("sync"):
            if len(self._batches) < self._wanted(until_pause - 1):
                self._loads.append(self._thread.submit(self._load, self._residency.publisher.offer(self.version)))
            else:  # no batch is made with it
                self._roles.learner.publish(self.version)
        return self._verified()

    def _verified(self) -> int:
        """Count the tensors verified by finished loads between batches; raises what went wrong in them."""
        verified = 0
        while self._loads and self._loads[0].done():
            verified += self._loads.popleft().result()
        return verified

    # In the thread, in the order of submission.

    def _draw(self, version: int, loads: list[Future[int]]) -> Batch:
        for load in loads:  # done: no batch may be made with wrong weights
            load.result()
        batch = self._sampler.draw(self._next_draw, version)
        self._next_draw += batch.drawn
        return batch

    def _load(self, published: Published) -> int:
        with self._ahead_timer.phase("sync"):
            return self._residency.publisher.load(published)
