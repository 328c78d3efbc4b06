"""The probe against transformers' own eager attention, on the tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2Config, Qwen2ForCausalLM

from ral_system.attention import probe as probe_module
from ral_system.attention.policy import attention_policy
from ral_system.attention.probe import IMPLEMENTATION, AttentionProbe, Capture
from ral_system.data.chat import ChatRenderer
from ral_system.data.collate import Collator, TensorBatch
from ral_system.data.media import MediaStore
from ral_system.data.visual_search import VisualSearch
from ral_system.models.loading import load_processor
from ral_system.types import Sample

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load(tiny_model: Path) -> Load:
    def loaded(implementation: str) -> Any:
        return AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation=implementation).eval()

    return loaded


@pytest.fixture(scope="module")
def batches(tiny_model: Path, media: MediaStore) -> dict[str, TensorBatch]:
    """By name: one picture, two pictures, no picture, and all of them right-padded together."""
    processor = load_processor(tiny_model)
    render, collate = ChatRenderer(processor, "answer"), Collator(processor, media.open)
    pictures = [media.put(VisualSearch(seed=0, grid=grid, objects=2).record("train", grid).image) for grid in (2, 3, 4)]
    samples = {}
    for name, images in (("one", pictures[:1]), ("two", pictures[1:]), ("text", [])):
        prompt = render.prompt(id=name, kind="", question="what is at a1 ?", answer="", media=images)
        samples[name] = Sample(name, prompt, render.response("<answer> red circle </answer>"))
    return {name: collate((s,)) for name, s in samples.items()} | {"together": collate(tuple(samples.values()))}


def inputs(batch: TensorBatch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "mm_token_type_ids": batch.token_types,
        "pixel_values": batch.pixel_values,
        "image_grid_thw": batch.image_grid_thw,
        "use_cache": False,
    }


def policies(capture: Capture, batch: TensorBatch) -> list[Tensor]:
    found = []
    for index, length in enumerate(batch.attention_mask.sum(-1).tolist()):
        query, key = capture.sequence(index, length)
        found.append(attention_policy(query, key, torch.arange(length), scale=capture.scale))
    return found


NAMES = ["one", "two", "text", "together"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_eager_attention_of_the_last_layer(load: Load, batches: dict[str, TensorBatch], name: str) -> None:
    batch, model = batches[name], load(IMPLEMENTATION)
    with torch.no_grad():
        eager = load("eager")(**inputs(batch), output_attentions=True).attentions[-1]
        with AttentionProbe(model).capture() as capture:
            model(**inputs(batch))
    for index, policy in enumerate(policies(capture, batch)):
        length = policy.shape[0]
        alpha = eager[index, :, :length, :length].mean(0)
        expected = alpha.tril(-1) / (1 - alpha.diagonal())[:, None].clamp(min=1e-12)
        assert (policy - expected)[1:].abs().max() <= 1e-6
        assert not policy[0].any()
        assert policy[1:].std() > 1e-3  # rows differ: the comparison is not one of uniform with uniform


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_logits_as_they_are_bit_by_bit(load: Load, batches: dict[str, TensorBatch], name: str) -> None:
    batch, model = batches[name], load(IMPLEMENTATION)
    with torch.no_grad():
        plain = load("sdpa")(**inputs(batch)).logits
        with AttentionProbe(model).capture():
            probed = model(**inputs(batch)).logits
        unprobed = model(**inputs(batch)).logits
    assert torch.equal(probed, plain)
    assert torch.equal(unprobed, plain)


def gradients(model: Any, batch: TensorBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Policies, and the gradient of a function of logits and policies."""
    with AttentionProbe(model).capture() as capture:
        logits = model(**inputs(batch)).logits
    found = policies(capture, batch)
    generator = torch.Generator().manual_seed(0)
    loss = logits.square().mean()
    for policy in found:
        loss = loss + (policy * torch.randn(policy.shape, generator=generator)).sum()
    loss.backward()
    return [p.detach() for p in found], {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_query_and_key_of_the_last_layer_but_not_its_values(
    load: Load, batches: dict[str, TensorBatch]
) -> None:
    model = load(IMPLEMENTATION)
    with AttentionProbe(model).capture() as capture:
        model(**inputs(batches["together"]))
    sum((p[1:, 0]).sum() for p in policies(capture, batches["together"])).backward()
    last = model.get_decoder().layers[-1].self_attn
    first = model.get_decoder().layers[0].self_attn
    assert last.q_proj.weight.grad.any()
    assert last.k_proj.weight.grad.any()
    assert last.v_proj.weight.grad is None
    assert first.v_proj.weight.grad.any()


def test_gradient_checkpointing_changes_nothing(load: Load, batches: dict[str, TensorBatch]) -> None:
    plain, checkpointed = load(IMPLEMENTATION).train(), load(IMPLEMENTATION).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    runs = []
    last = checkpointed.get_decoder().layers[-1].self_attn.q_proj
    last.register_forward_hook(lambda *_: runs.append(1))
    expected_policies, expected = gradients(plain, batches["together"])
    found_policies, found = gradients(checkpointed, batches["together"])
    assert len(runs) == 2  # the layer ran again in the backward pass, or this test shows nothing
    assert all(torch.equal(a, b) for a, b in zip(found_policies, expected_policies, strict=True))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-7), name


def test_captures_nothing_after_the_block_even_when_it_raises(load: Load, batches: dict[str, TensorBatch]) -> None:
    model = load(IMPLEMENTATION)
    probe = AttentionProbe(model)
    with pytest.raises(RuntimeError, match="inside"), probe.capture() as capture:
        raise RuntimeError("inside")
    with torch.no_grad():
        model(**inputs(batches["text"]))
    with pytest.raises(AssertionError, match="did not run"):
        capture.sequence(0, 1)


def test_only_the_last_text_layer_is_captured(load: Load, batches: dict[str, TensorBatch]) -> None:
    model, batch = load(IMPLEMENTATION), batches["one"]
    with torch.no_grad():
        with AttentionProbe(model).capture() as capture:
            model(**inputs(batch))
        assert capture.query is not None and capture.key is not None
        length = batch.input_ids.shape[1]
        assert capture.query.shape == (1, 2, length, 32)
        assert capture.key.shape == (1, 1, length, 32)
        assert capture.scale == pytest.approx(32**-0.5)


def test_an_attention_class_it_does_not_know_is_refused_by_name(load: Load) -> None:
    model = load(IMPLEMENTATION)
    attention = model.get_decoder().layers[-1].self_attn
    attention.__class__ = type("OtherAttention", (type(attention),), {})
    with pytest.raises(ValueError, match="does not know OtherAttention; known: Qwen2_5_VLAttention"):
        AttentionProbe(model)


def test_a_model_loaded_with_other_attention_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="the model runs attention 'sdpa'; load it with 'probed_sdpa'"):
        AttentionProbe(load("sdpa"))


def test_the_known_text_only_family_is_probed_too() -> None:
    config = Qwen2Config(
        vocab_size=11,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=IMPLEMENTATION,
    )
    model = Qwen2ForCausalLM(config).eval()
    ids = torch.tensor([[1, 5, 3, 9, 2]])
    with torch.no_grad():
        with AttentionProbe(model).capture() as capture:
            model(ids)
        model.set_attn_implementation("eager")
        alpha = model(ids, output_attentions=True).attentions[-1][0].mean(0)
    query, key = capture.sequence(0, 5)
    found = attention_policy(query, key, torch.arange(5), scale=capture.scale)
    assert torch.allclose(found[1:], (alpha.tril(-1) / (1 - alpha.diagonal())[:, None])[1:], atol=1e-6)
    assert "Qwen2Attention" in probe_module.KNOWN_ATTENTION
