"""The claim in small: one layer cannot reach the Bayes predictor, depth can, and not without the other modality."""

from dataclasses import replace

import pytest

from ral_system.studies.icl.regression import QUICK, Measured, run


@pytest.fixture(scope="module")
def measured() -> Measured:
    return run(QUICK, 0)


def test_one_layer_stays_at_its_optimum_above_zero(measured: Measured) -> None:
    for name in ("self", "cross"):
        assert 0.9 < measured.excess[name][1] / measured.one_layer < 1.25
    assert measured.one_layer > 0.05


def test_depth_comes_close_to_bayes(measured: Measured) -> None:
    assert measured.excess["cross"][4] < measured.one_layer / 20
    assert measured.excess["self"][2] < measured.one_layer / 2


def test_depth_does_not_help_without_the_other_modality(measured: Measured) -> None:
    assert measured.excess["within"][4] > 0.01 > 5 * measured.excess["cross"][4]


def test_training_finds_richardsons_iteration(measured: Measured) -> None:
    alpha, beta = measured.learned[4]
    assert alpha == pytest.approx(0.18, abs=0.02) and beta == pytest.approx(-alpha, abs=0.015)


def test_no_model_beats_the_bayes_predictor_of_its_context(measured: Measured) -> None:
    bayes = measured.by_context["Bayes, given the context"]
    assert bayes[64] < bayes[16] / 2
    for name, by_context in measured.by_context.items():
        assert name.startswith("Bayes") or all(by_context[n] > 1.5 * bayes[n] for n in by_context)


def test_a_seed_repeats(measured: Measured) -> None:
    assert run(replace(QUICK, depths={"cross": (1, 4)}, contexts=(16,)), 0).learned == measured.learned
