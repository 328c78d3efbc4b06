"""A run whose processes are placed as those of a real one, and do nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from ral_system.actors import roles
from ral_system.actors.placement import Bundle
from ral_system.actors.roles import RayRoles
from ral_system.config.commands import TrainConfig
from tests.system.pretended_actor import PretendedActor


def start(config: TrainConfig, model: Path, run: Path, *pretended: str) -> RayRoles:
    """Place the processes of the rl stage, and start those of the roles `pretended`, without models."""
    start_processes = RayRoles._start

    def start_pretended(started: RayRoles, bundles: Sequence[Bundle], run: Path) -> None:
        start_processes(started, [bundle for bundle in bundles if bundle.role in pretended], run)

    with pytest.MonkeyPatch.context() as patch:
        for role in pretended:
            patch.setitem(roles._ACTORS, role, PretendedActor)
        patch.setattr(RayRoles, "_start", start_pretended)
        patch.setattr(RayRoles, "_build", lambda *given: None)
        patch.setattr(RayRoles, "_attention_kernel", "that of nothing", raising=False)  # which `_build` hears of
        return RayRoles(config, "rl", model, run)
