"""Scores of a sample that several weights made, against a loop over tokens and rows."""

from typing import Any

import numpy as np
import pytest

from ral_system.attention.selection import row_tokens, select_rows
from ral_system.scoring.scores import join_versions
from ral_system.types import AttentionRecord, Prompt, Sample, SampleScores

R, T, K, HEADS = 5, 11, 3, 2
WORDS = dict(enumerate(["<answer>", "red", "star", "</answer>", "."]))


def sample() -> Sample:
    """Tokens 0 and 1 are version 4's, 2 and 3 version 6's, the last one version 7's."""
    prompt = Prompt("p", "k", "?", "red", (), tuple(range(6)), question_positions=(2, 3, 4))
    return Sample("p#0", prompt, tuple(WORDS), weight_version=4, switches=((2, 6), (4, 7)))


def scores(version: int, rows: int, *, top_k: bool, per_head: bool) -> SampleScores:
    rng = np.random.default_rng(version)
    heads = (HEADS,) if per_head else ()
    kept = K if top_k else T

    def record() -> AttentionRecord:
        return AttentionRecord(
            version=version,
            tokens=T,
            values=rng.random((*heads, rows, kept), np.float32),
            indices=rng.integers(0, T, (*heads, rows, kept), np.int32) if top_k else None,
            tail=rng.random((*heads, rows), np.float32) if top_k else None,
        )

    return SampleScores(
        rng.random(R, np.float32),
        (record(), record()),
        {"entropy": rng.random(rows, np.float32)},
        glances=np.full((2, 3), version, np.float32),
        visual_reward=float(version),
    )


def test_versions_of_tokens() -> None:
    assert sample().token_versions().tolist() == [4, 4, 6, 6, 7]
    assert sample().weight_versions == (4, 6, 7)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("generated", [0, 1, 2, 3, 4]),
        ("predicting", [0, 1, 2, 3, 4]),
        ("answer", [1, 2]),
        ("instruction", [0, 0, 0]),  # read at the weights that began the response
    ],
)
def test_the_token_that_a_row_belongs_to(kind: Any, tokens: list[int]) -> None:
    rows = select_rows(kind, sample(), WORDS.__getitem__)
    assert row_tokens(kind, sample(), rows) == tokens


@pytest.mark.parametrize("top_k", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("tokens", [[0, 1, 2, 3, 4], [1, 2], [0, 0, 0], []])
def test_every_token_and_row_is_its_own_version_s(tokens: list[int], per_head: bool, top_k: bool) -> None:
    made = sample().token_versions()
    by_version = {v: scores(v, len(tokens), top_k=top_k, per_head=per_head) for v in (4, 6, 7)}
    joined = join_versions(by_version, made, made[tokens])
    assert joined.log_probs.tolist() == [by_version[v].log_probs[t] for t, v in enumerate(made)]
    assert joined.visual_reward == 7.0
    assert joined.glances is not None and (joined.glances == 7.0).all()
    for layer, record in enumerate(joined.attention):
        assert (record.version, record.tokens) == (4, T)
        assert record.values.shape == by_version[4].attention[layer].values.shape
        for row, token in enumerate(tokens):
            of_token = by_version[made[token]].attention[layer]
            assert np.array_equal(record.values[..., row, :], of_token.values[..., row, :])
            if record.indices is not None and record.tail is not None:
                assert of_token.indices is not None and of_token.tail is not None
                assert np.array_equal(record.indices[..., row, :], of_token.indices[..., row, :])
                assert np.array_equal(record.tail[..., row], of_token.tail[..., row])
        assert (record.indices is not None) == top_k
    expected = [by_version[made[token]].row_statistics["entropy"][row] for row, token in enumerate(tokens)]
    assert joined.row_statistics["entropy"].tolist() == expected
