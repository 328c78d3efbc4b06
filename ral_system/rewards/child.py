"""The verifier process: reads jobs from its standard input, one JSON line each, and answers each with one line.

`worker.py` starts it and may kill it at any moment. JSON rather than pickle, so a verifier that has been taken
over by what it judges cannot run code in the parent. Imports no torch.

Lines in:  the greeting `{"path", "judge", "settings", "config", "response_format"}`, jobs `[text, reference, kind]`
Lines out: `{"ready": true}` or `{"broken": reason}`, then `{"parts"}` or `{"error": reason}` in job order
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from ral_system.config.reward import JudgeConfig
from ral_system.errors import RalError
from ral_system.rewards.judge import prepare
from ral_system.rewards.response import Response
from ral_system.subprocesses import fork_guarded, limit_memory

Judge = Callable[[Response, JudgeConfig], Mapping[str, float]]


def main() -> None:
    """Serve until standard input ends."""
    fork_guarded(parent=int(sys.argv[1]))
    jobs, answers = _take_over_standard_streams()
    with contextlib.suppress(BrokenPipeError):  # the parent may die before the kernel's signal arrives here
        _serve(_whole_lines(jobs), answers)


def _serve(lines: Iterator[bytes], answers: BinaryIO) -> None:
    if not (line := next(lines, b"")):
        return
    greeting = json.loads(line)
    try:
        sys.path[:] = greeting["path"]
        config: JudgeConfig = load(greeting["settings"]).model_validate(greeting["config"])
        limit_memory(int(config.memory_gib * 2**30))
        prepare(config)
        judge: Judge = load(greeting["judge"])
    except Exception as error:
        _write(answers, {"broken": _reason(error)})
        return
    _write(answers, {"ready": True})
    own, of_kind = os.getpid(), functools.cache(config.of_kind)
    for line in lines:
        text, reference, kind = json.loads(line)
        verdict = _verdict(judge, Response(text, reference, kind, greeting["response_format"]), of_kind(kind))
        if os.getpid() != own:  # a verifier that forked returned here twice
            os._exit(0)
        _write(answers, verdict)


def _whole_lines(jobs: BinaryIO) -> Iterator[bytes]:
    """The lines that were sent to their end: a parent that is killed may leave half of one."""
    return itertools.takewhile(lambda line: line.endswith(b"\n"), jobs)


def load(name: str) -> Any:
    """The function or class called `module:qualified.name`."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _verdict(judge: Judge, response: Response, config: JudgeConfig) -> dict[str, Any]:
    try:
        parts = {name: float(value) for name, value in judge(response, config).items()}
        if not all(0 <= value <= 1 for value in parts.values()):  # which NaN is not either
            return {"error": f"the verifier returned {parts}; every value must be in [0, 1]"}
    except BaseException as error:  # a verifier that calls sys.exit costs its own sample only
        return {"error": _reason(error)}
    return {"parts": parts}


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, RalError) else f"{type(error).__name__}: {error}"


def _take_over_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes to the parent to other descriptors, safe from a verifier that prints or reads."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return jobs, answers


def _write(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
