"""Verifiers in processes that can be killed: one that hangs or crashes costs its own completion and nothing else.

    submit() → queue → pool thread → W processes (`child.py`) → verdicts → collect()

One thread owns the processes. It gives each a window of jobs, reads verdicts, and watches a deadline per completion.
A process that misses it, or dies, is killed and replaced: the completion it was judging gets that status, and the
others it held go back to the head of the queue.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ral_system.config.choices import ResponseFormat
from ral_system.config.reward import JudgeConfig
from ral_system.errors import ActorError, RalError, SetupError
from ral_system.rewards.child import Judge, load
from ral_system.rewards.judge import judge
from ral_system.rewards.worker import START_TIMEOUT_S, WINDOW, Job, Loss, Worker
from ral_system.types import Completion, FinishReason, Prompt, RewardStatus, Verdict

_MAX_FAILED_STARTS = 3


class RewardPool:
    """A `Rewarder` over `config.workers` verifier processes.

    `judge` must be a module-level function: the processes import it by name. Use as a context manager, or call
    `close`; the processes also end when this one does, however it does.
    """

    def __init__(self, config: JudgeConfig, response_format: ResponseFormat, judge: Judge = judge) -> None:
        self._timeout_s = config.timeout_s
        self._worker_count = config.workers
        self._greeting = _greeting(config, response_format, judge)
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._unjudged: set[str] = set()
        self._results: dict[str, Verdict] = {}
        self._failure: RalError | None = None
        self._failed_starts = 0
        self._closing = False
        self._wake_fd, self._waker_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._waker_fd, False)
        self._thread = threading.Thread(target=self._run, name="reward-pool", daemon=True)
        self._thread.start()

    def submit(self, completions: Sequence[Completion], prompt: Prompt) -> None:
        """Queue completions of one prompt for judging; returns at once."""
        with self._changed:
            if self._closing:
                raise ActorError("the reward pool is closed; start a new one")
            for completion in completions:
                if completion.id in self._unjudged or completion.id in self._results:
                    raise ValueError(f"completion {completion.id} was submitted twice")
                self._queue.append(Job(completion.id, completion.text, prompt.answer, prompt.kind))
                self._unjudged.add(completion.id)
        self._wake()

    def collect(self) -> Mapping[str, Verdict]:
        """Wait for everything submitted since the last call; completion id → verdict.

        Raises SetupError where no process can start or load its verifier.
        """
        with self._changed:
            # Every job has its own deadline, so this bound is only ever met by a bug in the pool itself.
            rounds = math.ceil(len(self._unjudged) / self._worker_count)
            bound_s = 2 * START_TIMEOUT_S + rounds * (self._timeout_s + 10)
            finished = self._changed.wait_for(lambda: self._failure or not self._unjudged, timeout=bound_s)
            if self._failure:
                raise self._failure
            if not finished:
                raise ActorError(f"{len(self._unjudged)} rewards are missing after {bound_s:.0f} s; see the log above")
            results, self._results = self._results, {}
            return results

    def close(self) -> None:
        """Kill every process. Completions without a verdict are dropped."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self._wake()
        self._thread.join(timeout=30)
        os.close(self._wake_fd)
        os.close(self._waker_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- the pool's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Started here and not in __init__: Linux's parent-death signal follows the thread that started a process.
        workers: list[Worker] = []
        try:
            workers += [Worker(self._greeting) for _ in range(self._worker_count)]
            while not self._closing:
                for worker in workers:
                    self._give_jobs(worker)
                    worker.flush()
                self._sleep(workers)
                for i, worker in enumerate(workers):
                    self._deliver(worker)
                    if loss := worker.loss(self._timeout_s):
                        worker.kill()
                        self._account_for(worker, loss)
                        workers[i] = Worker(self._greeting)
            self._fail(ActorError("the reward pool was closed"))
        except SetupError as error:
            self._fail(error)
        except BaseException as error:  # so that a waiting collect() raises it
            self._fail(ActorError(f"the reward pool failed: {type(error).__name__}: {error}"))
            raise
        finally:
            for worker in workers:
                worker.kill()

    def _give_jobs(self, worker: Worker) -> None:
        if not worker.ready or len(worker.jobs) > WINDOW // 2:
            return
        with self._changed:
            share = math.ceil(len(self._queue) / self._worker_count)  # so that other processes get jobs as well
            count = min(share, WINDOW - len(worker.jobs))
            jobs = [self._queue.popleft() for _ in range(count)]
        if jobs:
            worker.send(jobs)

    def _sleep(self, workers: list[Worker]) -> None:
        """Wait for a verdict, a submission, room in a pipe, or the next deadline."""
        poll = select.poll()  # not select(): descriptors can be beyond 1024 in a process of a large cluster
        poll.register(self._wake_fd, select.POLLIN)
        for worker in workers:
            for descriptor, events in worker.interests():
                poll.register(descriptor, events)
        deadlines = [d for worker in workers if (d := worker.deadline_in(self._timeout_s)) is not None]
        poll.poll(math.ceil(min(deadlines) * 1000) + 1 if deadlines else None)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_fd, 65536)

    def _deliver(self, worker: Worker) -> None:
        verdicts = worker.receive()
        if worker.ready:
            self._failed_starts = 0
        if verdicts:
            with self._changed:
                for job, message in verdicts:
                    self._settle(_result(job, message))

    def _account_for(self, worker: Worker, loss: Loss) -> None:
        """Settle the job that the lost process was judging; put the others back."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise SetupError(f"{loss.detail} on start, {self._failed_starts} times in a row")
        if not worker.jobs:
            return
        with self._changed:
            culprit = worker.jobs.popleft()
            self._settle(Verdict(culprit.completion_id, {}, loss.status, loss.detail))
            self._queue.extendleft(reversed(worker.jobs))

    def _settle(self, result: Verdict) -> None:
        self._unjudged.remove(result.completion_id)
        self._results[result.completion_id] = result
        if not self._unjudged:
            self._changed.notify_all()

    def _fail(self, failure: RalError) -> None:
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes too
            os.write(self._waker_fd, b".")


def check_loads(config: JudgeConfig, response_format: ResponseFormat) -> None:
    """Start one verifier process and end it. Raises SetupError where it cannot load what `config` names."""
    with RewardPool(config.model_copy(update={"workers": 1}), response_format) as pool:
        nothing = Completion("check", 0, (), (), "", FinishReason.STOP, 0)
        pool.submit([nothing], Prompt("check", "", "", "", (), ()))
        pool.collect()


def _greeting(config: JudgeConfig, response_format: ResponseFormat, judge: Judge) -> bytes:
    name = _name(judge)
    if judge.__module__ == "__main__" or "<" in judge.__qualname__ or load(name) is not judge:
        raise ValueError(f"judge {name} cannot be imported by name; define it at the top level of a module")
    greeting = {
        "path": [*sys.path, str(Path.cwd())],  # the path of an installed command lacks the current folder
        "judge": name,
        "settings": _name(type(config)),
        "config": config.model_dump(mode="json"),
        "response_format": response_format,
    }
    return json.dumps(greeting).encode() + b"\n"


def _name(what: Any) -> str:
    return f"{what.__module__}:{what.__qualname__}"


def _result(job: Job, message: Mapping[str, Any]) -> Verdict:
    if "error" in message:
        return Verdict(job.completion_id, {}, RewardStatus.ERROR, message["error"])
    return Verdict(job.completion_id, message["parts"], RewardStatus.OK)
