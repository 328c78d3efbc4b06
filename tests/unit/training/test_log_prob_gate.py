"""The gate on rollout and learner log-probs: which batches pass, and who is told of the others."""

from collections.abc import Sequence

import numpy as np
import pytest

from ral_system.config.rollout import LogProbGateConfig
from ral_system.errors import LogProbError
from ral_system.training.log_prob_gate import check_log_prob_gaps, log_prob_gaps, quantile
from ral_system.types import Prompt, Sample, SampleScores

STRICT = LogProbGateConfig(token=1e-4, outliers=0.0, mean=None, p999=None)
WIDE = LogProbGateConfig(token=2.0, outliers=1e-3, mean=0.1, p999=1.0)


def sample(name: str, log_probs: Sequence[float]) -> Sample:
    return Sample(name, Prompt(name, "", "?", "", (), (1, 2)), (7,) * len(log_probs), tuple(log_probs))


def batch(gaps: Sequence[float], size: int = 100) -> tuple[list[Sample], np.ndarray]:
    """Gaps of tokens in samples of up to 100 tokens each."""
    parts = [gaps[i : i + size] for i in range(0, len(gaps), size)]
    return [sample(f"s{i}", part) for i, part in enumerate(parts)], np.array(gaps, dtype=np.float64)


def with_gaps(count: int, *gaps: float) -> tuple[list[Sample], np.ndarray]:
    return batch([*gaps, *[0.01] * (count - len(gaps))])


@pytest.mark.parametrize(("gap", "passes"), [(9e-5, True), (1.1e-4, False), (float("nan"), False)])
def test_without_outliers_the_largest_gap_decides(gap: float, passes: bool) -> None:
    samples, gaps = batch([0.0, gap, 1e-7])
    if passes:
        check_log_prob_gaps(samples, gaps, STRICT)
    else:
        with pytest.raises(LogProbError, match=r"sample s0: .*1 of 3 tokens .*outliers=0 allows 0"):
            check_log_prob_gaps(samples, gaps, STRICT)


@pytest.mark.parametrize("count", [50, 900, 4000])
def test_one_outlier_passes_whatever_the_size_of_the_batch(count: int) -> None:
    check_log_prob_gaps(*with_gaps(count, 2.5), WIDE)
    check_log_prob_gaps(*with_gaps(count, 30.0), WIDE.model_copy(update={"mean": None}))


def test_of_a_small_batch_one_huge_outlier_moves_the_mean_too_far() -> None:
    check_log_prob_gaps(*with_gaps(400, 30.0), WIDE)
    with pytest.raises(LogProbError, match="their mean by"):
        check_log_prob_gaps(*with_gaps(300, 30.0), WIDE)


def test_a_thousandth_of_the_tokens_may_be_outliers_and_no_more() -> None:
    check_log_prob_gaps(*with_gaps(4000, 3.0, 3.0, 3.0, 3.0), WIDE)
    with pytest.raises(LogProbError, match=r"5 of 4000 tokens by more than rollout.log_prob_gate.token=2, .* allows 4"):
        check_log_prob_gaps(*with_gaps(4000, *[3.0] * 5), WIDE.model_copy(update={"p999": None}))


def test_the_mean_is_bounded() -> None:
    samples, gaps = batch([0.11] * 300)
    with pytest.raises(LogProbError, match=r"their mean by 0.11, more than rollout\.log_prob_gate\.mean=0.1"):
        check_log_prob_gaps(samples, gaps, WIDE)
    check_log_prob_gaps(samples, gaps, WIDE.model_copy(update={"mean": None}))


def test_the_quantile_is_bounded_and_names_the_sample_with_the_largest_gap() -> None:
    samples, gaps = batch([0.0] * 250 + [1.5] + [0.0] * 40 + [1.2] + [0.0] * 8)
    with pytest.raises(LogProbError, match=r"sample s2: .* differ by 1.5 .*99.9 % quantile by 1.2, more than .*p999=1"):
        check_log_prob_gaps(samples, gaps, WIDE)


def test_a_gap_that_is_no_number_passes_no_gate() -> None:
    with pytest.raises(LogProbError, match="differ by nan"):
        check_log_prob_gaps(*with_gaps(4000, float("nan")), WIDE.model_copy(update={"mean": None, "p999": None}))


@pytest.mark.parametrize("count", [1, 2, 3, 999, 1001, 1002, 2001, 2002, 2003])
def test_the_quantile_leaves_out_one_token_in_a_thousand(count: int) -> None:
    gaps = np.random.default_rng(0).permutation(count).astype(np.float64)
    beyond = -(-(count - 1) // 1000)  # rounded up
    assert quantile(gaps) == count - 1 - beyond


def test_ranks_that_add_their_gaps_have_those_of_the_batch() -> None:
    shards = [[(sample("a", (-1.0, -2.0)),)], [(sample("b", (-3.0,)), sample("c", (-4.0, -5.0, -6.0)))]]
    learner = {"a": (-1.5, -2.0), "b": (-3.25,), "c": (-4.0, -7.0, -6.0)}
    scores = {name: SampleScores(np.array(values, dtype=np.float32)) for name, values in learner.items()}
    parts = [log_prob_gaps(shards, rank, {s.id: scores[s.id] for s in shards[rank][0]}) for rank in range(2)]
    assert parts[0].tolist() == [0.5, 0, 0, 0, 0, 0]
    assert (parts[0] + parts[1]).tolist() == [0.5, 0, 0.25, 0, 2.0, 0]
