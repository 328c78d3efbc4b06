"""The probe against transformers' own eager attention: four families, pictures, videos, padding, packing."""

import pytest
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from ral_system.attention import attention_policy
from ral_system.attention.packing import Packing
from ral_system.attention.probe import IMPLEMENTATION, AttentionProbe
from tests.unit.attention.probed import (
    CASES,
    FAMILIES,
    Inputs,
    Load,
    attention_of,
    contents,
    every_row,
    expected_policy,
    packed,
    policy,
    probed,
    sequence,
    together,
)


@pytest.mark.parametrize(("family", "content"), CASES)
def test_equals_eager_attention_of_the_last_layer(load: Load, family: str, content: str) -> None:
    inputs = sequence(family, content)
    expected, _ = expected_policy(load(family, "eager"), inputs)
    capture, _ = probed(load(family, IMPLEMENTATION), inputs)
    assert capture.query is not None and capture.key is not None
    found = policy(capture.query[0], capture.key[0], capture.scale)
    assert (found - expected[0])[1:].abs().max() <= 2e-6
    assert not found[0].any()
    assert found[1:].std() > 1e-3  # rows differ: the comparison is not one of uniform with uniform


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_is_right_beside_padding(load: Load, family: str, side: str) -> None:
    chosen = contents(family, "images", "text", "image and video")
    sequences = [sequence(family, content, seed) for seed, content in enumerate(chosen)]
    capture, _ = probed(load(family, IMPLEMENTATION), together(sequences, side))
    assert capture.query is not None and capture.key is not None
    for b, inputs in enumerate(sequences):
        expected, _ = expected_policy(load(family, "eager"), inputs)
        length = inputs["input_ids"].shape[1]
        kept = slice(-length, None) if side == "left" else slice(length)
        found = policy(capture.query[b, :, kept], capture.key[b, :, kept], capture.scale)
        assert (found - expected[0]).abs().max() <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_are_what_they_are_alone(load: Load, family: str) -> None:
    chosen = contents(family, "images", "text", "image and video", "image")
    sequences = [sequence(family, content, seed) for seed, content in enumerate(chosen)]
    alone = [expected_policy(load(family, "eager"), inputs) for inputs in sequences]
    model = load(family, IMPLEMENTATION)
    inputs, lengths = packed(model, sequences)
    with torch.no_grad(), AttentionProbe(attention_of(model)).capture(every_row(lengths)) as (capture,):
        logits = model(**inputs, use_cache=False).logits
    parts = zip(capture.groups(), logits[0].split(lengths), alone, strict=True)
    for layer, found_logits, (expected, expected_logits) in parts:
        rows = torch.arange(len(layer.query))
        found = attention_policy(layer.query, layer.key, rows, scale=layer.scale)
        assert (found - expected[0]).abs().max() <= 2e-6
        assert torch.allclose(found_logits, expected_logits[0], atol=2e-5)


def test_packed_sequences_take_no_mask(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION)
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match="packed sequences take no attention mask"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1]]), packing=Packing.apart((2, 2)))


@pytest.mark.parametrize(("family", "content"), CASES)
def test_leaves_the_logits_as_they_are_bit_by_bit(load: Load, family: str, content: str) -> None:
    inputs = sequence(family, content)
    with torch.no_grad():
        plain = load(family, "sdpa")(**inputs).logits
        model = load(family, IMPLEMENTATION)
        unprobed = model(**inputs).logits
    assert torch.equal(probed(model, inputs)[1], plain)
    assert torch.equal(unprobed, plain)


def gradients(model: PreTrainedModel, sequences: list[Inputs]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Policies, and the gradient of a function of logits and policies."""
    inputs, lengths = packed(model, sequences)
    with AttentionProbe(attention_of(model)).capture(every_row(lengths)) as (capture,):
        logits = model(**inputs, use_cache=False).logits
    generator = torch.Generator().manual_seed(0)
    loss, found = logits.square().mean(), []
    for layer in capture.groups():
        found.append(attention_policy(layer.query, layer.key, torch.arange(len(layer.query)), scale=layer.scale))
        loss = loss + (found[-1] * torch.randn(found[-1].shape, generator=generator)).sum()
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [p.detach() for p in found], {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_query_and_key_of_the_last_layer_but_not_its_values(load: Load) -> None:
    model = load("qwen2_5_vl", IMPLEMENTATION)
    inputs = sequence("qwen2_5_vl", "image")
    with AttentionProbe(attention_of(model)).capture(every_row((inputs["input_ids"].shape[1],))) as (capture,):
        model(**inputs)
    model.zero_grad(set_to_none=True)
    (at,) = capture.groups()
    attention_policy(at.query, at.key, torch.arange(1, 9), scale=at.scale)[:, 0].sum().backward()
    last = model.get_decoder().layers[-1].self_attn
    first = model.get_decoder().layers[0].self_attn
    assert last.q_proj.weight.grad.any()
    assert last.k_proj.weight.grad.any()
    assert last.v_proj.weight.grad is None
    assert first.v_proj.weight.grad.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(load: Load, family: str) -> None:
    model = load(family, IMPLEMENTATION).train()
    sequences = [sequence(family, "text" if family == "qwen2" else "images"), sequence(family, "text", 1)]
    expected_policies, expected = gradients(model, sequences)
    runs: list[int] = []
    hook = model.get_decoder().layers[-1].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        found_policies, found = gradients(model, sequences)
    finally:
        model.gradient_checkpointing_disable()
        hook.remove()
        model.eval()
    assert len(runs) == 2  # the layer ran again in the backward pass, or this test shows nothing
    assert all(torch.equal(a, b) for a, b in zip(found_policies, expected_policies, strict=True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


def test_reads_what_autocast_computes(load: Load) -> None:
    inputs = sequence("qwen2_5_vl", "image")
    exact, _ = expected_policy(load("qwen2_5_vl", "eager"), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        capture, _ = probed(load("qwen2_5_vl", IMPLEMENTATION), inputs)
        assert capture.query is not None and capture.key is not None
        found = policy(capture.query[0], capture.key[0], capture.scale)
    assert found.dtype == torch.float32
    assert 1e-6 < (found - exact[0]).abs().max() <= 0.1


def test_a_backward_pass_inside_the_block_does_not_capture_again(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with AttentionProbe(attention_of(model)).capture(every_row((3,))) as (capture,):
            logits = model(torch.tensor([[5, 6, 7]]), use_cache=False).logits
            first = capture.row_query
            logits.sum().backward()
            assert capture.row_query is first
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


def test_captures_nothing_after_the_block_even_when_it_raises(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION)
    probe = AttentionProbe(attention_of(model))
    with pytest.raises(RuntimeError, match="inside"), probe.capture() as (capture,):
        raise RuntimeError("inside")
    with torch.no_grad():
        model(torch.tensor([[5, 6]]))
    with pytest.raises(AssertionError, match="did not run"):
        capture.groups()
