"""Every family with adapters, with a frozen encoder and with a teacher of its own kind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bench.models import served
from ral_system.config.choices import Keys, Rows, Stage
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model, save_model
from ral_system.models.named_weights import named_weights
from ral_system.models.policy import PolicyModel
from ral_system.scoring.teacher import TeacherScorer
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Credit, Scores
from tests.perturbed import perturb
from tests.unit.families.of_transformers import Bench
from tests.unit.training.learners import Watched

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {of.model_type: of.build for of in served()}
ALONE = (
    *("stages=[rl]", "algorithm.attention.weight=5", "algorithm.attention.anchor=reference"),
    *("algorithm.policy_weight=0", "algorithm.kl.coefficient=0", "rollout.log_prob_gate.token=1e9"),
)
OUTCOMES = (0.7, -1.1)
LORA = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, v_proj], vision: false}"


class Case(Bench):
    """A model of a family with responses to questions about a picture, two others, and none."""

    def __init__(self, build: Callable[[Path], object], folder: Path, store: MediaStore) -> None:
        build(folder)
        super().__init__(folder, store, [(84, 56), (56, 56), (61, 100)])
        answer = self.family.tokenizer("<answer> red </answer>", add_special_tokens=False)["input_ids"]
        self.judged = []
        for i, sample in enumerate(self.samples(2)):
            ids = (*sample.response_token_ids, *answer)
            judged = {"rollout_log_probs": (0.0,) * len(ids), "advantage": OUTCOMES[i % 2], "index": i % 2}
            judged["credit"] = Credit(OUTCOMES[i % 2], OUTCOMES, OUTCOMES)
            self.judged.append(replace(sample, response_token_ids=ids, **judged))
        assert max(len(s.prompt.token_ids) + len(s.response_token_ids) for s in self.judged) > 24  # Gemma's window
        self.plan = plan_updates(self.judged, updates=1, shards=1, max_tokens=10**4)

    def rank(self, config: TrainConfig, stage: Stage = "rl") -> LearnerRank:
        return LearnerRank(config, self.folder, self.store, 0, 1, stage)


LIKE_ANOTHER = ("qwen2_vl", "idefics3")
"""Served by the code for qwen2_5_vl and smolvlm."""
every_family = pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=pytest.mark.long) if name in LIKE_ANOTHER else name for name in FAMILIES],
    indirect=True,
    scope="module",
)
"""Mark of a test, from which `bench.models` takes the claims of docs/models.md about a family."""


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, media: MediaStore) -> Case:
    return Case(FAMILIES[request.param], tmp_path_factory.mktemp(request.param), media)


@every_family
@torch.no_grad()
def test_packed_behind_shared_prompts_each_sequence_is_alone(case: Case) -> None:
    policy = PolicyModel(load_model(case.folder, dtype="float32"), case.family, temperature=1.0)
    batch = case.collate(case.judged)
    assert batch.packing.tokens < batch.packing.unshared_tokens
    together = policy(batch).log_probs
    for row, sample in zip(together, case.judged, strict=True):
        alone = policy(case.collate((sample,))).log_probs[0]
        assert torch.allclose(row[: len(alone)], alone, atol=2e-5), sample.id


@every_family
def test_the_attention_term_trains_adapters_that_merge_under_the_models_names(
    case: Case, make_config: Callable[..., TrainConfig], media: MediaStore, tmp_path: Path
) -> None:
    """All names and shapes are those of the plain model, which the tests of vLLM read back; outputs are kept."""
    rank, noise = case.rank(make_config(*ALONE, LORA)), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in rank._engine.trained_weights().items():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=noise))
    behaviour, reference, watched = rank.score(case.plan), rank.score_reference(case.plan), Watched(rank)
    manifest = rank.publish(1)
    assert manifest is not None
    plain = named_weights(load_model(case.folder, dtype="float32"))
    assert {name: tuple(w.shape) for name, w in plain.items()} == {n: d.shape for n, d in manifest.tensors.items()}
    rank.save_model(tmp_path / "merged")
    merged = LearnerRank(make_config(*ALONE), tmp_path / "merged", media, 0, 1, "rl").score(case.plan)
    for id, scores in behaviour.items():
        assert np.allclose(scores.log_probs, merged[id].log_probs, atol=2e-5)
        assert not np.allclose(scores.log_probs, reference[id].log_probs, atol=1e-3)
    rank.update(case.plan.updates[0], behaviour, reference)
    (gradients,) = watched.gradients
    assert all("lora_" in name for name in gradients)
    last = f"layers.{len(rank._engine.policy._layers) - 1}.self_attn."
    reached = {name.split(last)[1] for name, gradient in gradients.items() if last in name and gradient.any()}
    assert {f"{of}.lora_{part}.default.weight" for of in ("q_proj", "k_proj") for part in "AB"} <= reached


CHOICES = (
    *("backend=dense", "backend=chunked"),  # generated rows, all keys, mean of the heads, last layer
    *("rows=predicting", "rows=answer", "rows=instruction", "keys=visual", "keys=prompt", "keys=no_sinks"),
    *("heads=each", "layers=all", "layers=every second"),
)
"""Settings of `algorithm.attention` that every family is trained with."""


def test_no_choice_of_rows_and_keys_is_left_out() -> None:
    expected = {f"rows={rows}" for rows in get_args(Rows)} | {f"keys={keys}" for keys in get_args(Keys)}
    assert expected - {*CHOICES} == {"rows=generated", "keys=all"}  # which the other choices are trained with


@every_family
def test_every_choice_of_rows_keys_heads_layers_and_backends_trains(
    case: Case, make_config: Callable[..., TrainConfig]
) -> None:
    """The term is there and reaches q and k of the layers that are read; both backends agree."""
    found: dict[str, float] = {}
    softmax = case.family.softmax_layers
    for choice in CHOICES:
        setting = choice.replace("every second", str(list(softmax[::2])))
        rank = case.rank(make_config(*ALONE, f"algorithm.attention.{setting}"))
        reference = rank.score(case.plan)
        torch.manual_seed(4)
        with torch.no_grad():
            for weight in rank._engine.policy.model.get_decoder().parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        watched = Watched(rank)
        found[choice] = rank.update(case.plan.updates[0], rank.score(case.plan), reference)["attention/divergence"]
        for layer in {"layers=all": softmax, "layers=every second": softmax[::2]}.get(choice, softmax[-1:]):
            at = f"layers.{layer}.self_attn."
            moving = [n for n, g in watched.gradients[0].items() if at in n and n.endswith(".weight") and g.any()]
            assert any("q_proj" in name for name in moving) and any("k_proj" in name for name in moving), choice
    assert all(divergence > 1e-5 for divergence in found.values()), found
    assert found.pop("backend=dense") == pytest.approx(found["backend=chunked"], rel=1e-4)
    assert len(set(found.values())) == len(CHOICES) - 1  # no choice is without effect


OBJECTIVES = {
    **dict.fromkeys(("attention_credit", "group_anchor"), ("algorithm.attention.weight=1e5",)),
    **dict.fromkeys(("papo", "vgpo"), ()),
}
"""Other objectives than RAL's divergence, each with what makes it large enough to see."""


@every_family
def test_every_other_objective_changes_the_update(case: Case, make_config: Callable[..., TrainConfig]) -> None:
    def gradient(algorithm: str, *overrides: str) -> torch.Tensor:
        settings = ("stages=[rl]", f"algorithm={algorithm}", "algorithm.kl.coefficient=0", *overrides)
        rank = case.rank(make_config(*settings, "rollout.log_prob_gate.token=1e9"))
        watched = Watched(rank)
        rank.update(case.plan.updates[0], rank.score(case.plan), None)
        return torch.cat([g.flatten() for g in watched.gradients[0].values()])

    plain = gradient("grpo")
    for name, overrides in OBJECTIVES.items():
        assert (gradient(name, *overrides) - plain).norm() > 1e-3 * plain.norm(), name


@every_family
def test_a_frozen_encoder_sees_each_medium_once_and_is_not_trained(
    case: Case, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(*ALONE, "model.freeze_vision=true", "algorithm.attention.gradient_share_every=1")
    rank = case.rank(config)
    policy, seen = rank._engine.policy, []
    encode = policy.family.encode

    def counted(model: Any, features: Any, *rest: Any) -> Any:
        found = encode(model, features, *rest)
        seen.append(sum(map(len, found.values())) if features else 0)
        return found

    policy.family.encode = counted  # type: ignore[method-assign]
    scores, watched = rank.score(case.plan), Watched(rank)
    rank.update(case.plan.updates[0], scores, moved(scores))
    assert seen == [len({medium for sample in case.judged for medium in sample.prompt.media})] == [3]
    work = rank.work()
    assert (work.encoder_passes, work.media) == (1, 3)
    (gradients,) = watched.gradients
    modules = (policy.family.vision_encoder(policy.model), *policy.family.projector(policy.model))
    frozen = {p for module in modules for p in module.parameters()}
    trained = {name for name, p in policy.named_parameters() if p not in frozen}
    assert frozen and not any(p.requires_grad for p in frozen) and gradients.keys() <= trained
    assert any(gradient.any() for gradient in gradients.values())


@every_family
def test_products_in_bfloat16_give_nearly_the_same_update(case: Case, make_config: Callable[..., TrainConfig]) -> None:
    guided = "sft.attention_guidance={image: 0.15, system: 0.15}"
    found = {}
    for choice in ("none", "bfloat16"):
        rank = case.rank(make_config(f"sft.autocast={choice}", guided), "sft")
        found[choice] = rank.fit(case.plan.updates[0])
    rough, exact = found["bfloat16"], found["none"]
    assert 0 < abs(rough["supervised/loss"] - exact["supervised/loss"]) < 0.02
    assert rough["learner/grad_norm"] == pytest.approx(exact["learner/grad_norm"], rel=0.05)


def moved(scores: Scores) -> Scores:
    """Scores whose attention looks elsewhere."""
    return {
        id: replace(s, attention=tuple(replace(a, values=a.values[:, ::-1].copy()) for a in s.attention))
        for id, s in scores.items()
    }


@every_family
def test_a_teacher_of_the_same_family_tells_its_own_log_probs(
    case: Case, make_config: Callable[..., TrainConfig], media: MediaStore, tmp_path: Path
) -> None:
    """Each token's, of all tokens, by transformers without packing or probe."""
    model = load_model(case.folder, dtype="float32")
    torch.manual_seed(3)
    perturb(model, 0.3)
    save_model(model, model.state_dict(), case.family.processor, tmp_path / "teacher", case.folder)
    config = make_config("algorithm=attention_distill", f"teacher.path={tmp_path / 'teacher'}")
    (role,) = config.teachers
    teacher = TeacherScorer(
        config.algorithm, config.teacher, role, tmp_path / "teacher", case.folder, media, temperature=1.0
    )
    teacher.score(case.judged)
    found = teacher.take([sample.id for sample in case.judged])
    plain, banned = load_model(tmp_path / "teacher", dtype="float32"), list(load_family(case.folder).banned_ids)
    plain.set_attn_implementation("eager")
    for sample in case.judged[::2]:
        inputs = case.processed(sample.prompt)
        ids = torch.tensor([[*sample.prompt.token_ids, *sample.response_token_ids]])
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if (kinds := inputs.get("mm_token_type_ids")) is not None:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(sample.response_token_ids)))
        with torch.no_grad():
            logits = plain(**inputs).logits[0, len(sample.prompt.token_ids) - 1 : -1]
        logits[:, banned] = -torch.inf
        expected, tokens = logits.log_softmax(-1), found[sample.id].tokens
        assert tokens is not None and tokens.ids is not None
        of_ids = expected.gather(-1, torch.from_numpy(tokens.ids.astype(np.int64)))
        assert np.allclose(tokens.log_probs[:, :-1], of_ids, atol=3e-5)
