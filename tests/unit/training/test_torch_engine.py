from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral_system.config.choices import Stage
from ral_system.errors import GateError
from ral_system.media.store import MediaStore
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Held, Sample


@pytest.mark.parametrize(("stage", "group"), [("sft", "sft"), ("rl", "learner")])
def test_every_part_of_the_model_steps_at_its_rate(
    stage: Stage, group: str, tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable
) -> None:
    """Adam's first step is the rate times the gradient's sign, for all but tiny gradients."""
    plan, steps = plan_updates(rl_samples, updates=1, shards=1, max_tokens=300), []
    for factors in ("{vision: 1, projector: 1}", "{vision: 0.25, projector: 4}"):
        rates = (f"{group}.learning_rate=1e-3", f"{group}.warmup_updates=0", f"learner.rate_factors={factors}")
        rank = LearnerRank(make_config(*rates), tiny_model, media, 0, 1, stage)
        parameters = dict(rank._engine.policy.named_parameters())
        before = {name: p.detach().clone() for name, p in parameters.items()}
        if stage == "sft":
            metrics = rank.fit(plan.updates[0])
        else:
            scores = rank.score(plan)
            metrics = rank.update(plan.updates[0], scores, scores)
        assert metrics["learner/learning_rate"] == 1e-3  # the text model's
        steps.append({name: p.detach() - before[name] for name, p in parameters.items()})
    seen = set()
    for name, step in steps[0].items():
        factor = 4.0 if ".visual.merger." in name else 0.25 if ".visual." in name else 1.0
        assert step.abs().max() == pytest.approx(1e-3, rel=1e-2), name
        assert torch.allclose(steps[1][name], factor * step, rtol=1e-3, atol=1e-7), name
        seen.add(factor)
    assert seen == {0.25, 1.0, 4.0}


def test_tied_weights_are_saved_once_and_loaded_tied(
    tied_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    plan = plan_updates(rl_samples, updates=2, shards=1, max_tokens=300)
    config = make_config("sft.learning_rate=1e-2")
    rank = LearnerRank(config, tied_model, media, 0, 1, "sft")
    rank.fit(plan.updates[0])
    rank.save(tmp_path / "state")
    expected = rank.fit(plan.updates[1])

    resumed = LearnerRank(config, tied_model, media, 0, 1, "sft")
    resumed.load(tmp_path / "state")
    model = resumed._engine.policy.model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert resumed.fit(plan.updates[1]) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(model.lm_head.weight, rank._engine.policy.model.lm_head.weight)


def test_memory_that_leaves_the_device_comes_back_as_it_was(
    tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable
) -> None:
    settings = ("algorithm.attention.anchor=ema", "algorithm.attention.weight=5", "learner.learning_rate=1e-3")
    plan, ranks = plan_updates(rl_samples, updates=2, shards=1, max_tokens=300), []
    for leaves in (False, True):
        rank = LearnerRank(make_config(*settings), tiny_model, media, 0, 1, "rl")
        scores = rank.score(plan)
        metrics = [rank.update(plan.updates[0], scores, scores)]
        if leaves:
            rank.hold(Held.WEIGHTS)
            assert rank.publish(0) is not None
            rank.hold(Held.NOTHING)
            rank.hold(Held.ALL)
        metrics += [rank.update(plan.updates[1], scores, scores)]
        ranks.append((metrics, dict(rank._engine.policy.named_parameters()), rank._average._average))
    (metrics, weights, average), others = ranks[0], ranks[1]
    assert others[0] == metrics
    assert all(torch.equal(others[1][name], weight) for name, weight in weights.items())
    assert all(torch.equal(others[2][name], tensor) for name, tensor in average.items())


def test_a_learner_without_its_memory_refuses_to_work(
    tiny_model: Path, media: MediaStore, rl_samples: list[Sample], make_config: Callable, tmp_path: Path
) -> None:
    rank = LearnerRank(make_config(), tiny_model, media, 0, 1, "rl")
    plan = plan_updates(rl_samples, updates=1, shards=1, max_tokens=300)
    scores, manifest = rank.score(plan), rank.publish(0)
    assert manifest is not None
    Work = tuple[str, Callable[[], object]]
    needs_all: list[Work] = [
        ("compute", lambda: rank.score(plan)),
        ("compute", lambda: rank.check_log_probs(plan)),
        ("compute", lambda: rank.update(plan.updates[0], scores, scores)),
        ("compute", lambda: rank.look(rl_samples[:1])),
        ("save its state", lambda: rank.save(tmp_path)),
        ("load its state", lambda: rank.load(tmp_path)),
    ]
    needs_weights: list[Work] = [
        ("publish weights", lambda: rank.publish(0)),
        ("offer weights", lambda: rank.offer(manifest, ())),
        ("save its model", lambda: rank.save_model(tmp_path / "model")),
    ]
    with pytest.raises(GateError, match="a learner rank was asked to hold nothing while it holds all of its memory on"):
        rank.hold(Held.NOTHING)
    rank.hold(Held.WEIGHTS)
    for work, call in needs_all:
        with pytest.raises(GateError, match=f"a learner rank was asked to {work}"):
            call()
    for _, call in needs_weights:
        call()
    rank.hold(Held.NOTHING)
    for work, call in [*needs_all, *needs_weights]:
        with pytest.raises(GateError, match=f"a learner rank was asked to {work}"):
            call()
    rank.hold(Held.ALL)
    assert rank.score(plan).keys() == scores.keys()
