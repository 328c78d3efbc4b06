"""Base of actor processes: each writes its own log file, and its stacks into it when it is asked."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import ray

from ral_system.errors import RalError
from ral_system.observability.quiet import silence_third_party
from ral_system.observability.timeline import SpanLog
from ral_system.planning.remedies import full_device, unfit_torchvision
from ral_system.stacks import write_at_signal

P = ParamSpec("P")
R = TypeVar("R")


class ActorProcess:
    """Base of the actors. The constructor does no work, because Ray replaces the class of an error raised there.

    stdout and stderr of the process, C libraries included, go to `log`; callers show its last lines when it dies.
    """

    THREADS: ClassVar[Mapping[str, int]] = {}
    """Numbers of further threads by `concurrency_group`: methods marked with one run in its threads."""

    def __init__(self, name: str, log: Path) -> None:
        self._name = name
        self._lock = threading.Lock()
        _redirect_output(log)
        silence_third_party()
        self._spans = SpanLog(log.parent, log.stem)
        faulthandler.enable(file=sys.stderr)
        write_at_signal()
        print(f"--- {name}: pid {os.getpid()} on {socket.gethostname()}", flush=True)

    def pid(self) -> int:
        """Operating system process id, on the actor's node."""
        return os.getpid()

    def gpus(self) -> list[str]:
        """GPUs that Ray gave this process, by their ids in CUDA_VISIBLE_DEVICES."""
        return ray.get_runtime_context().get_accelerator_ids()["GPU"]

    def explained(self, error: Exception) -> RalError | None:
        """Return an error as one line that says what to do; None for a bug."""
        return full_device(error, self._name) or unfit_torchvision(error)

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Log any error that is not ours.

        An error that a user can act on becomes one line (`explained`). The call is noted for the run's timeline under
        `name`.
        """
        began = time.perf_counter()
        try:
            yield
        except RalError:
            raise
        except Exception as error:
            traceback.print_exc()
            if (explained := self.explained(error)) is not None:
                raise explained from None
            raise
        finally:
            with self._lock:
                self._spans.ended(name, time.perf_counter() - began)


Actor = TypeVar("Actor", bound=ActorProcess)


def watched(method: Callable[Concatenate[Actor, P], R]) -> Callable[Concatenate[Actor, P], R]:
    """Run an actor's method under `ActorProcess.watched`. Put it above `ray.method`: Ray finds that one's options."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.watched(method.__name__):
            return method(self, *args, **kwargs)

    return run


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (lives as long as the process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
