"""Groups whose members are scored by different ranks."""

from collections.abc import Sequence

import numpy as np

from ral_system.training.group_glances import with_group_glances
from ral_system.types import MicroBatch, Prompt, Sample, SampleScores, Scores
from tests.unit.training.thread_ranks import together


def exchanged(by_shard: Sequence[Sequence[MicroBatch]], *of_ranks: Scores) -> list[Scores]:
    """Exchange scores; return those of each rank afterwards."""
    return together(len(of_ranks), lambda rank, shards: with_group_glances(by_shard, shards, of_ranks[rank]))


def sample(prompt: str, index: int) -> Sample:
    return Sample(f"{prompt}#{index}", Prompt(prompt, "", "?", "", (), (1, 2)), (7,), index=index)


def scores(*looks: tuple[Sample, list[float]]) -> Scores:
    return {
        s.id: SampleScores(np.zeros(1, np.float32), glances=np.array([row], np.float32) if row else None)
        for s, row in looks
    }


def test_every_sample_gets_those_of_its_group_in_order() -> None:
    a1, a0, a2, b0, b1 = (sample(*key) for key in (("a", 1), ("a", 0), ("a", 2), ("b", 0), ("b", 1)))
    by_shard = [((a1, b0),), ((a0,), (b1, a2))]
    mine = [
        scores((a1, [0.1, 0.2]), (b0, [0.5, 0.6, 0.7])),
        scores((a0, [0.3, 0.4]), (b1, [0.8, 0.9, 1.0]), (a2, [0.0, 0.0])),
    ]
    found = exchanged(by_shard, *mine)
    expected = np.array([[[0.3, 0.4]], [[0.1, 0.2]], [[0.0, 0.0]]], np.float32)
    for of_rank, id in ((0, "a#1"), (1, "a#0"), (1, "a#2")):
        group = found[of_rank][id].group_glances
        assert group is not None and group.dtype == np.float32 and np.allclose(group, expected)
    assert found[1]["a#0"].group_glances is found[1]["a#2"].group_glances
    other = found[1]["b#1"].group_glances
    assert other is not None and np.allclose(other, [[[0.5, 0.6, 0.7]], [[0.8, 0.9, 1.0]]])


def test_text_alone_has_none() -> None:
    s = sample("a", 0)
    given = scores((s, []))
    assert exchanged([((s,),)], given) == [given]
