"""Steered attention against its dense definition, and generation against scoring under the same intervention."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from ral_system.attention.intervention import Intervention
from ral_system.attention.packing import Packing
from ral_system.attention.probe import IMPLEMENTATION
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.rollout.hf_generator import HfEngine
from ral_system.types import Sample, Sampling

MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True, layer_idx=1)
VISUAL = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]]).bool()
SYSTEM = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]]).bool()  # the second is padded by 3


def tensors(queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 16, generator=g) * 2
    key, value = (torch.randn(2, 2, keys, 16, generator=g) for _ in range(2))
    return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **keywords: Any) -> Tensor:
    function: Any = AttentionInterface()[IMPLEMENTATION]
    return function(MODULE, query, key, value, mask, scaling=0.25, **keywords)[0].transpose(1, 2)


def dense(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, how: Intervention) -> Tensor:
    """Compute the definition in float64, one head at a time."""
    out = torch.zeros(*query.shape, dtype=torch.float64)
    for b in range(2):
        for h in range(4):
            z = query[b, h].double() @ key[b, h // 2].double().T * 0.25
            image, system = (torch.nn.functional.pad(m[b], (0, z.shape[1] - 8)).double() for m in (VISUAL, SYSTEM))
            change = how.image * image - how.system * system
            if how.heads is not None and h not in how.heads:
                change = change * 0
            if how.space == "logits":
                z = z + change * z
            a = z.masked_fill(~allowed[b], float("-inf")).softmax(-1)
            if how.space == "weights":
                a = a + change * a
                a = a / a.sum(-1, keepdim=True)
            out[b, h] = a @ value[b, h // 2].double()
    return out


CAUSAL = torch.ones(8, 8).tril().bool().expand(2, 8, 8)
PADDED = CAUSAL & torch.tensor([[1] * 8, [0] * 3 + [1] * 5]).bool()[:, None]


@pytest.mark.parametrize("space", ["weights", "logits"])
@pytest.mark.parametrize("heads", [None, (0, 3)])
@pytest.mark.parametrize("case", ["alone", "padded", "next token"])
def test_equals_the_definition(space: Any, heads: tuple[int, ...] | None, case: str) -> None:
    how = Intervention(0.5, 0.4, space, heads=heads)
    query, key, value = tensors(*((1, 11) if case == "next token" else (8, 8)))
    if case == "next token":
        allowed = torch.ones(2, 1, 11).bool()
        allowed[1, :, :3] = False
    else:
        allowed = CAUSAL if case == "alone" else PADDED
    mask = None if case == "alone" else allowed[:, None]
    found = attend(query, key, value, mask, steering=how.on(VISUAL, SYSTEM))
    expected = dense(query, key, value, allowed, how)
    rows = allowed.any(-1)[:, None, :, None]  # a padded row has nothing to look at
    assert torch.allclose(torch.where(rows, found, 0).double(), torch.where(rows, expected, 0), atol=1e-5)
    plain = attend(query, key, value, mask)
    assert (found - plain).abs().max() > 0.01
    if heads is not None:
        assert torch.allclose(torch.where(rows, found - plain, 0)[:, 1:3], torch.zeros(()), atol=1e-6)


def test_weights_and_logits_are_not_the_same() -> None:
    query, key, value = tensors(8, 8)
    both = [
        attend(query, key, value, None, steering=Intervention(0.5, 0.4, space).on(VISUAL, SYSTEM))  # type: ignore[arg-type]
        for space in ("weights", "logits")
    ]
    assert (both[0] - both[1]).abs().max() > 0.01


def test_small_coefficients_act_in_half_precision_too() -> None:
    query, key, value = (t.bfloat16() for t in tensors(8, 8))
    keys_of_one = torch.ones_like(key)  # all logits of a row equal: attention is the factors themselves
    value = torch.zeros_like(value)
    value[..., :8, 0] = VISUAL[:, None].bfloat16()
    found = [
        attend(query, keys_of_one, value, None, steering=Intervention(a, 0.0).on(VISUAL, SYSTEM))[1, :, 7, 0].float()
        for a in (0.05, 0.15)
    ]
    for a, share in zip((0.05, 0.15), found, strict=True):
        assert share.mean().item() == pytest.approx(2 * (1 + a) / (8 + 2 * a), abs=2e-3)
    assert (found[1] > found[0]).all()


@pytest.mark.parametrize("space", ["weights", "logits"])
def test_no_mask_of_all_pairs_is_made(space: Any) -> None:
    query, key, value = tensors(8, 8)
    steering = Intervention(0.5, 0.4, space).on(VISUAL, SYSTEM)
    masks = []
    original = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *a, **k: (masks.append((k["attn_mask"], k["is_causal"])), original(*a, **k))[1],
        )
        attend(query, key, value, None, steering=steering)
    assert masks == [(None, True)]


def test_a_layer_that_is_not_chosen_stays_as_it_is_bit_by_bit() -> None:
    query, key, value = tensors(8, 8)
    steering = Intervention(0.5, 0.4, layers=(0, 2)).on(VISUAL, SYSTEM)
    assert torch.equal(attend(query, key, value, None, steering=steering), attend(query, key, value, None))


def test_packed_sequences_are_steered_each_by_its_own_keys() -> None:
    query, key, value = tensors(8, 8)
    how = Intervention(0.5, 0.4)
    lengths = (5, 3)
    steering = how.on(VISUAL[:1], SYSTEM[:1])
    packed = attend(*(t[:1] for t in (query, key, value)), None, packing=Packing.apart(lengths), steering=steering)
    for start, length in ((0, 5), (5, 3)):
        window = slice(start, start + length)
        here = how.on(VISUAL[:1, window], SYSTEM[:1, window])
        alone = attend(*(t[:1, :, window] for t in (query, key, value)), None, steering=here)
        assert torch.allclose(packed[:, :, window], alone, atol=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        Intervention(0.15, 0.4),
        Intervention(0.5, 0.6, "logits"),
        Intervention(2.0, 0.0, "weights", layers=(1,), heads=(1,)),
    ],
    ids=["weights", "logits", "one head of one layer"],
)
def test_what_is_generated_has_the_log_probs_that_scoring_gives(
    how: Intervention,
    tiny_model: Path,
    media: MediaStore,
    draw_samples: Callable,
    make_config: Callable[..., TrainConfig],
) -> None:
    samples: list[Sample] = draw_samples(4)
    config, family = make_config().rollout, load_family(tiny_model)
    engine = HfEngine(tiny_model, config, media, 0, intervention=how)
    prompts = [replace(s.prompt, id=f"p{i}") for i, s in enumerate(samples)]
    completions = list(engine.generate(prompts, Sampling(2, 1.0, 6, 5)))
    of = {prompt.id: prompt for prompt in prompts}
    scored = tuple(Sample(c.id, of[c.prompt_id], c.token_ids) for c in completions)
    batch = Collator(family, media)(scored)

    def log_probs(intervention: Intervention | None) -> Tensor:
        model = load_model(tiny_model, dtype="float32")
        policy = PolicyModel(model, family, temperature=1.0, intervention=intervention)
        with torch.no_grad():
            return policy(batch).log_probs

    found, plain = log_probs(how), log_probs(None)
    for i, completion in enumerate(completions):
        assert found[i, : len(completion.token_ids)].tolist() == pytest.approx(completion.log_probs, abs=2e-5)
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(log_probs(Intervention(0.0, 0.0)), plain)


def test_what_cannot_be_is_refused(
    tiny_model: Path, media: MediaStore, make_config: Callable[..., TrainConfig]
) -> None:
    for image, system in ((-0.1, 0.0), (0.0, 1.0), (0.0, -0.1), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match=r"image=.* must be at least 0, and system=.* below 1"):
            Intervention(image, system)
    with pytest.raises(ValueError, match=r"layers=\[0, 2\]: the model has 2 layers, so no 2"):
        HfEngine(tiny_model, make_config().rollout, media, 0, intervention=Intervention(0.1, 0, layers=(0, 2)))
    with pytest.raises(ValueError, match=r"layers=\[5\]: the model has 2 layers, so no 5"):
        model = load_model(tiny_model, dtype="float32")
        PolicyModel(model, load_family(tiny_model), temperature=1.0, intervention=Intervention(0.1, 0, layers=(5,)))
    with pytest.raises(ValueError, match=r"heads=\[9\]: the model has 2 heads, so no 9"):
        HfEngine(tiny_model, make_config().rollout, media, 0, intervention=Intervention(0.1, 0, heads=(9,)))
