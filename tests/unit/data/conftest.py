"""What tests of prepared files share: the processes that judge answers, which take a second to start."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from ral_system.config.reward import RewardConfig
from ral_system.rewards.pool import RewardPool


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[Any, RewardPool]]:
    started: dict[Any, RewardPool] = {}
    yield started
    for pool in started.values():
        pool.close()


@pytest.fixture(autouse=True)
def shared_pool(monkeypatch: pytest.MonkeyPatch, pools: dict[Any, RewardPool]) -> None:
    """One pool for all preparations of a file with the same settings, unless the test brings its own verifier."""

    def pool(config: RewardConfig, response_format: Any) -> Any:
        if config.function is not None:
            return RewardPool(config, response_format)
        key = config.model_dump_json(), response_format
        if key not in pools:
            pools[key] = RewardPool(config, response_format)
        return nullcontext(pools[key])

    monkeypatch.setattr("ral_system.tasks.open.RewardPool", pool)
