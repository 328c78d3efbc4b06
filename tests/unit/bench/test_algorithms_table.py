"""docs/algorithms.md is what the code says, and the catalogue knows every choice of the configuration."""

import typing
from pathlib import Path

import pytest

from bench.algorithms_table import TARGET, composed, table
from ral_system import conf
from ral_system.algorithms import catalogue
from ral_system.algorithms.kl import ESTIMATORS
from ral_system.config.algorithm import AlgorithmConfig, CorrectionConfig, KLConfig
from ral_system.config.rollout import RolloutGroup
from ral_system.registry import POLICY_LOSSES

PRESETS = {f.stem for f in (Path(conf.__file__).parent / "algorithm" / "policy_loss").glob("*.yaml")}


def test_the_file_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == table(), "run python -m bench.algorithms_table"


def choices(annotation: object) -> set[str]:
    return set(typing.get_args(annotation))


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        (catalogue.POLICY_LOSSES, PRESETS),
        (catalogue.ADVANTAGES, choices(AlgorithmConfig.model_fields["advantage"].annotation)),
        (catalogue.REDUCTIONS, choices(AlgorithmConfig.model_fields["reduction"].annotation)),
        (catalogue.CORRECTIONS, choices(CorrectionConfig.model_fields["kind"].annotation)),
        (catalogue.ON_NEW_WEIGHTS, choices(RolloutGroup.model_fields["on_new_weights"].annotation)),
        (catalogue.KL_ESTIMATORS, choices(KLConfig.model_fields["estimator"].annotation)),
    ],
)
def test_nothing_is_missing_and_nothing_invented(listed: tuple[catalogue.Choice, ...], known: set[str]) -> None:
    assert {choice.name for choice in listed} == known
    assert len(listed) == len(known)


def test_every_preset_is_of_a_loss_that_exists() -> None:
    assert {composed(name)["name"] for name in PRESETS} == set(POLICY_LOSSES.names)
    assert {choice.name for choice in catalogue.KL_ESTIMATORS} == set(ESTIMATORS)
