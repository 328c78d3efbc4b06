"""`python -m bench.rewards`: verdicts per second of each verifier, and a batch in which some hang.

Prints a table; --out also writes the figures as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count as count_from
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from ral_system.config.reward import RewardConfig
from ral_system.launch.arguments import Parser
from ral_system.rewards.pool import RewardPool
from ral_system.types import Completion, FinishReason, Prompt

ANSWERS = {
    "exact": ("red star", "Red star"),
    "multiple_choice": ("B. the red one", "B"),
    "numeric": ("about 1,024 apples", "1024"),
    "ocr": ("do not stop her on red", "do not stop here on red"),
    "free_form": ("a red cube stands on a blue table", "the red cube is on the table"),
    "regression": ("103", "100"),
    "box": ("[12, 14, 80, 90]", "[10, 10, 80, 80]"),
    "interval": ("00:03 to 00:12", "[2.5, 10]"),
}
"""An answer and its reference, for each verifier but mathematics."""


def main() -> None:
    """Measure and print."""
    parser = Parser(prog="python -m bench.rewards", description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="verifier processes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to measure each (%(default)s)")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="samples in the batch in which some hang (%(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=0.5, help="deadline of each of them, in s (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "workers": options.workers,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "verdicts_per_s": {},
    }
    print(f"| verifier | verdicts/s, {options.workers} processes |\n| --- | --- |")
    for name in (*ANSWERS, "mathematics"):
        found["verdicts_per_s"][name] = rate = _rate(name, options.workers, options.seconds)
        print(f"| {name} | {rate:,.0f} |", flush=True)
    found["hangs"] = hangs = _with_hangs(options.samples, options.workers, options.timeout)
    print(
        f"\n{options.samples:,} samples, 1 % of them hang, {options.timeout:g} s each: {hangs['seconds']:.1f} s, "
        f"{hangs['ok']:,} verdicts, {hangs['timeout']:,} timeouts, {hangs['error']:,} errors"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def hang_on_request(given: str, reference: str) -> float:
    """Compare exactly, as a `reward.function` that never returns for the answer `hang`."""
    while given == "hang":
        time.sleep(1)
    return float(given == reference)


def _rate(name: str, workers: int, seconds: float) -> float:
    pairs = _pairs(name)
    with RewardPool(_config(verifier=name, workers=workers), "answer_only") as pool:
        _judge(pool, list(islice(pairs, 20 * workers)))  # every process has imported what it needs
        count, took = 100, 0.0
        while took < seconds / 2:
            count *= 2
            asked = list(islice(pairs, count))
            began = time.perf_counter()
            _judge(pool, asked)
            took = time.perf_counter() - began
    return count / took


def _pairs(name: str) -> Iterator[tuple[str, str]]:
    """Yield answers and references without end. Those of mathematics are all different: its verifier caches."""
    if name != "mathematics":
        yield from repeat(ANSWERS[name])
    for n in count_from(1):
        for root in (2, 3, 5, 6, 7):
            yield rf"\frac{{{2 * n}\sqrt{{{root}}}}}{{2}}", rf"{n}\sqrt{{{root}}}"


def _with_hangs(samples: int, workers: int, timeout_s: float) -> dict[str, float]:
    config = _config(
        verifier="function", function="bench.rewards:hang_on_request", workers=workers, timeout_s=timeout_s
    )
    answers = ["hang" if i % 100 == 50 else "red" for i in range(samples)]
    with RewardPool(config, "answer_only") as pool:
        _judge(pool, [("red", "red")] * 20 * workers)
        began = time.perf_counter()
        statuses = _judge(pool, [(given, "red") for given in answers])
        seconds = time.perf_counter() - began
    return {"samples": samples, "timeout_s": timeout_s, "seconds": seconds} | {
        status: statuses[status] for status in ("ok", "timeout", "error")
    }


def _judge(pool: RewardPool, pairs: Sequence[tuple[str, str]]) -> Counter[str]:
    for i, (given, reference) in enumerate(pairs):
        prompt, text = Prompt("p", "bench", "?", reference, (), (1,)), f"<answer> {given} </answer>"
        pool.submit([Completion("p", i, (1,), (0.0,), text, FinishReason.STOP, 0)], prompt)
    return Counter(str(result.status) for result in pool.collect().values())


def _config(**changes: Any) -> RewardConfig:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("ral_system.conf", version_base=None):
        default: Any = OmegaConf.to_container(compose("config").reward)
    return RewardConfig.model_validate(default | {"timeout_s": 30.0} | changes)


if __name__ == "__main__":
    main()
