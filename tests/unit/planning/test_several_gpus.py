"""Plans of frozen models that lie on several GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ral_system.config.commands import PlanCommandConfig
from ral_system.errors import ConfigError
from ral_system.planning.passes import tokens_of
from ral_system.planning.plan import Plan, make_plan
from tests.composed import compose_config
from tests.unit.planning.models import SMALL_STEP, VIDEO, write_7b

LAYER = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584
"""Numbers of a decoder layer of the 7B: its projections with three biases, its three matrices, and two norms."""
DISTILL = ("algorithm=attention_distill", "teacher.path=/teacher", "teacher.dtype=bfloat16")


@pytest.fixture(scope="module")
def four_layers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_7b(tmp_path_factory.mktemp("four") / "model", tiny_model, layers=4, vocabulary=2048, depth=2)


@pytest.fixture(scope="module")
def planned(four_layers: Path, one_layer: Path):
    def plan(*overrides: str) -> Plan:
        config = compose_config(*VIDEO, *SMALL_STEP, *DISTILL, *overrides, kind=PlanCommandConfig)
        return make_plan(config, config.plan, one_layer, [four_layers])

    return plan


def test_the_fullest_gpu_is_counted_and_hidden_states_travel(planned) -> None:
    plans = [planned(f"cluster.gpus_per_teacher={gpus}") for gpus in (1, 2)]
    (one, whole), (two, fullest) = ((plan, plan.roles[-1]) for plan in plans)
    assert (whole.name, whole.gpus, fullest.gpus) == ("teacher", 1, 2)
    outside = whole.device["weights"] - 4 * 2 * LAYER
    assert 0 < outside < 2 * LAYER  # so each has two layers
    assert fullest.device["weights"] == 2 * 2 * LAYER + outside
    assert fullest.phases == whole.phases and fullest.total < whole.total
    phases = [{phase.name: phase for phase in plan.phases}["teacher"] for plan in (one, two)]
    assert phases[0].flops == phases[1].flops
    travelled_s = 2 * 2 * 3584 * tokens_of(tuple(one.samples)) / 450e9  # there and back, two bytes each
    assert phases[1].seconds - phases[0].seconds == pytest.approx(travelled_s, rel=1e-3)


def test_a_teacher_that_does_not_fit_is_told_of_more_gpus(planned) -> None:
    (problem,) = planned("cluster.gpus_per_teacher=0.02").problems
    assert problem.startswith("the teacher needs ")
    assert "lower teacher.max_tokens, raise cluster.gpus_per_teacher (with cluster.placement=disagg" in problem


@pytest.mark.parametrize(("role", "layers"), [("scorer", 1), ("teacher", 4)])
def test_more_gpus_than_layers_are_refused(planned, role: str, layers: int) -> None:
    says = rf"^cluster\.gpus_per_{role}=5: .* has {layers} decoder layers, .*; set it to {layers} or less$"
    with pytest.raises(ConfigError, match=says):
        planned(f"cluster.gpus_per_{role}=5")


def test_every_process_of_the_reference_lies_on_its_gpus(four_layers: Path) -> None:
    config = compose_config(*VIDEO, *SMALL_STEP, "cluster.gpus_per_scorer=4", kind=PlanCommandConfig)
    reference = make_plan(config, config.plan, four_layers, []).roles[-1]
    assert (reference.name, reference.gpus) == ("reference", 4)
    assert reference.device["weights"] < 2 * 2 * LAYER
