"""What Qwen3.5 alone has: layers with linear attention, over packed groups and beside layers that are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from ral_system.attention.intervention import Intervention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.learner import LoraConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError
from ral_system.families.family import Family
from ral_system.families.gated_delta import PackedGatedDeltaNet
from ral_system.families.known import family_of
from ral_system.families.qwen3_5 import Qwen35
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family, load_model
from ral_system.models.lora import Adapters
from ral_system.models.policy import PolicyModel
from ral_system.planning.memory import Cache
from ral_system.planning.outline import OutlinedRanks
from ral_system.rollout.hf_generator import HfEngine
from ral_system.scoring.build import build_policy
from ral_system.types import Sample, VideoSampling
from tests.qwen3_5_model import LINEAR, SOFTMAX, build_qwen3_5
from tests.qwen3_model import MARKERS
from tests.unit.families.of_transformers import Bench, check_places
from tests.unit.media.clips import clip, noise

PACKING = Packing(
    (
        PackedGroup(70, (5, 1, 66)),
        PackedGroup(0, (9,)),
        PackedGroup(2, (1, 4)),
        PackedGroup(5, (3,)),
        PackedGroup(1, (1,)),
    )
)
"""Prompts of more than a chunk of 64 tokens and of less than the convolution sees, responses of one token."""


@pytest.fixture(scope="module")
def family(qwen3_5_folder: Path) -> Family:
    return load_family(qwen3_5_folder)


@pytest.fixture
def model(qwen3_5_folder: Path) -> Any:
    return load_model(qwen3_5_folder, dtype="float32")


@pytest.fixture(scope="module")
def samples(family: Family, media: MediaStore) -> tuple[Sample, ...]:
    """Groups of responses to a question about a video, one about a picture and one about neither."""
    render = ChatRenderer(family, "answer")
    video = media.put_video(clip(noise(2, 4, 28, 56)), VideoSampling(1.0, 4, 2), VideoLimits())
    picture = media.put(Image.fromarray(noise(3, 1, 84, 56)[0]))
    answers = ("<answer> red </answer>", "a1", "<think> a1 red circle </think> <answer> b1 </answer>")
    return tuple(
        Sample(
            f"{p}#{i}", render.prompt(id=f"{p}", kind="", question="what ?", answer="", media=of), render.response(a)
        )
        for p, of in enumerate([[video], [picture], []])
        for i, a in enumerate(answers[: 3 - p])
    )


# --- layers with linear attention ---


@pytest.fixture
def layer(model: Any, family: Family) -> PackedGatedDeltaNet:
    family.prepare(model)
    found = model.get_decoder().layers[0].linear_attn
    assert type(found) is PackedGatedDeltaNet
    return found


def token_by_token(layer: Any, x_TE: Tensor) -> Tensor:
    """The layer over one sequence by the equations of the module's docstring, in the precision of `x`."""
    weights = {name: w.to(x_TE.dtype) for name, w in layer.named_parameters()}

    def projected(name: str) -> Tensor:
        return x_TE @ weights[f"{name}.weight"].T

    qkv_TC, kernel_CW = projected("in_proj_qkv"), weights["conv1d.weight"][:, 0]
    before_TC = torch.cat([qkv_TC.new_zeros(kernel_CW.shape[1] - 1, qkv_TC.shape[1]), qkv_TC])
    q_K, k_K, v_D = [], [], []
    for t in range(len(x_TE)):
        seen_WC = before_TC[t : t + kernel_CW.shape[1]]
        parts = silu((seen_WC.T * kernel_CW).sum(1)).split([layer.key_dim, layer.key_dim, layer.value_dim])
        for to, part, heads in zip(
            (q_K, k_K, v_D), parts, (layer.num_k_heads,) * 2 + (layer.num_v_heads,), strict=True
        ):
            to.append(part.view(heads, -1))
    g_TV = -weights["A_log"].exp() * softplus(projected("in_proj_a") + weights["dt_bias"])
    beta_TV, shared = projected("in_proj_b").sigmoid(), layer.num_v_heads // layer.num_k_heads
    out_TVD = []
    states = [x_TE.new_zeros(layer.head_k_dim, layer.head_v_dim) for _ in range(layer.num_v_heads)]
    for t in range(len(x_TE)):
        outs = []
        for v in range(layer.num_v_heads):
            query, key = (of[t][v // shared] / (of[t][v // shared].square().sum() + 1e-6).sqrt() for of in (q_K, k_K))
            decayed = g_TV[t, v].exp() * states[v]
            states[v] = decayed + torch.outer(key, beta_TV[t, v] * (v_D[t][v] - decayed.T @ key))
            outs.append(states[v].T @ query / layer.head_k_dim**0.5)
        out_TVD.append(torch.stack(outs))
    out = torch.stack(out_TVD)
    normed = weights["norm.weight"] * out * (out.square().mean(-1, keepdim=True) + layer.layer_norm_epsilon).rsqrt()
    gated = normed * silu(projected("in_proj_z").view_as(out))
    return gated.flatten(1) @ weights["out_proj.weight"].T


def sequences(packing: Packing, x_TE: Tensor) -> list[tuple[int, int, Tensor]]:
    """Find each response's start in the stream, its prompt's length, and its sequence's rows of the stream."""
    found = []
    for start, group in zip(packing.starts, packing.groups, strict=True):
        for at, length in zip(group.starts, group.responses, strict=True):
            rows = torch.cat([x_TE[start : start + group.prompt], x_TE[start + at : start + at + length]])
            found.append((start + at, group.prompt, rows))
    return found


def test_groups_are_what_each_sequence_is_token_by_token(layer: PackedGatedDeltaNet) -> None:
    """Outputs, and gradients of inputs and of weights; the slow code is in float64."""
    torch.manual_seed(0)
    x_TE, upstream_TE = torch.randn(2, PACKING.tokens, 64)
    ours_TE, slow_TE = x_TE.clone().requires_grad_(), x_TE.double().requires_grad_()
    found_TE = layer(ours_TE[None], packing=PACKING)[0]
    expected_TE = torch.zeros_like(found_TE, dtype=torch.float64)
    for at, prompt, rows in sequences(PACKING, slow_TE):
        own = token_by_token(layer, rows)
        assert torch.allclose(found_TE[at : at + len(own) - prompt].double(), own[prompt:], atol=1e-5)
        expected_TE = expected_TE.index_add(0, torch.arange(at, at + len(own) - prompt), own[prompt:])
    for start, group in zip(PACKING.starts, PACKING.groups, strict=True):
        if group.prompt:
            own = token_by_token(layer, slow_TE[start : start + group.prompt])
            assert torch.allclose(found_TE[start : start + group.prompt].double(), own, atol=1e-5)
            expected_TE = expected_TE.index_add(0, torch.arange(start, start + group.prompt), own)
    weights = list(layer.parameters())
    ours = torch.autograd.grad((found_TE * upstream_TE).sum(), [ours_TE, *weights])
    slow = torch.autograd.grad((expected_TE * upstream_TE).sum(), [slow_TE, *weights])
    for one, other in zip(ours, slow, strict=True):
        assert other.abs().max() > 1e-3
        assert torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_prompt_is_what_responses_begin_with(layer: PackedGatedDeltaNet) -> None:
    """Its tokens change its responses' outputs and those of no other group; a response changes its own alone."""
    torch.manual_seed(0)
    x_TE = torch.randn(PACKING.tokens, 64)
    with torch.no_grad():
        before = layer(x_TE[None], packing=PACKING)[0]
        for changed, group in ((0, range(142)), (71, range(71, 75)), (151, range(151, 158)), (157, range(157, 158))):
            other = x_TE.clone()
            other[changed] += 1
            moved = (layer(other[None], packing=PACKING)[0] != before).any(-1).nonzero()[:, 0]
            assert set(moved.tolist()) == set(group)


def test_without_packing_the_layer_is_transformers(layer: PackedGatedDeltaNet, qwen3_5_folder: Path) -> None:
    x_BTE = torch.randn(2, 9, 64)
    theirs = load_model(qwen3_5_folder, dtype="float32").get_decoder().layers[0].linear_attn
    with torch.no_grad():
        assert torch.equal(layer(x_BTE), theirs(x_BTE))
        assert torch.allclose(layer(x_BTE[:1], packing=Packing.apart((9,))), theirs(x_BTE[:1]), atol=1e-6)


def test_each_matrix_is_used_once_whatever_is_packed(layer: PackedGatedDeltaNet) -> None:
    """Ranks under ZeRO-3 gather a module's parameters when it is called."""
    calls: list[nn.Module] = []
    for module in layer.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    layer(torch.randn(1, PACKING.tokens, 64), packing=PACKING)
    assert len(calls) == len(set(calls)) == 7  # four projections into it, one out of it, the norm and itself


def test_shared_prompts_are_prompts_of_ones_own(model: Any, family: Family, media: MediaStore, samples: Any) -> None:
    """Log-probs, rows and gradients of the whole model."""
    policy, collate, read = PolicyModel(model, family, temperature=1.0), Collator(family, media), AttentionRead()
    batch = collate(samples)
    assert batch.packing.tokens < batch.packing.unshared_tokens
    output = policy(batch, [read])
    together = torch.autograd.grad(output.log_probs.sum(), list(model.get_decoder().parameters()), retain_graph=True)
    apart, rows = 0.0, []
    for i, sample in enumerate(samples):
        alone = policy(collate((sample,)), [read])
        assert torch.allclose(output.log_probs[i, : alone.log_probs.shape[1]], alone.log_probs[0], atol=1e-5)
        apart = apart + alone.log_probs.sum()
        rows.append(alone.attention[read][0].layers[0].query)
    found = torch.cat([group.layers[0].query for group in output.attention[read]])
    assert torch.allclose(found, torch.cat(rows), atol=1e-5)
    for one, other in zip(together, torch.autograd.grad(apart, list(model.get_decoder().parameters())), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


# --- layers that are read ---


@pytest.mark.parametrize(
    ("layers", "indices"), [("last", [2]), ("all", [1, 2]), ((1,), [1]), ((-3,), [1]), ((-2, 1), [1, 2])]
)
def test_an_index_counts_all_layers_and_a_name_those_with_softmax(
    tmp_path: Path, media: MediaStore, samples: Any, layers: Any, indices: list[int]
) -> None:
    build_qwen3_5(tmp_path, (LINEAR, SOFTMAX, SOFTMAX, LINEAR))
    family, model = load_family(tmp_path), load_model(tmp_path, dtype="float32")
    assert family.linear_layers == {0, 3} and family.softmax_layers == (1, 2)
    read, seen = AttentionRead(layers=layers), []
    for i in (1, 2):
        attention = model.get_decoder().layers[i].self_attn
        attention.k_norm.register_forward_hook(lambda *_, i=i: seen.append(i))
    policy = PolicyModel(model, family, temperature=1.0)
    policy.check(read)
    with torch.no_grad():
        (group,) = policy(Collator(family, media)(samples[-1:]), [read]).attention[read]
    assert seen == [1, 2] and len(group.layers) == len(indices)
    found = [id(layer) for layer in _probed(policy, read)]
    assert found == [id(model.get_decoder().layers[i].self_attn) for i in indices]


def _probed(policy: PolicyModel, read: AttentionRead) -> list[nn.Module]:
    from ral_system.attention.probe import AttentionProbe

    return AttentionProbe(policy._layers, read.layers)._layers


@pytest.mark.parametrize("layers", [(1, 2), (-2,)])
def test_a_layer_with_linear_attention_is_refused_by_name(qwen3_5_folder: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_policy(
            qwen3_5_folder, torch.device("cpu"), AttentionRead(layers=layers), dtype="float32", temperature=1.0
        )
    assert str(refused.value) == (
        f"model {qwen3_5_folder}, algorithm.attention: layers={list(layers)}: layer {layers[-1]} has linear attention, "
        "which has no weights to read; layers with softmax attention are 1, 3"
    )


def test_a_layer_with_linear_attention_cannot_be_steered(
    model: Any, family: Family, qwen3_5_folder: Path, media: MediaStore, make_config: Callable
) -> None:
    steer = Intervention(0.5, 0.4, layers=(1, 2))
    message = r"^layers=\[1, 2\]: layer 2 has linear attention, which cannot be steered; .* softmax attention are 1, 3$"
    with pytest.raises(ValueError, match=message):
        PolicyModel(model, family, temperature=1.0, intervention=steer)
    with pytest.raises(ValueError, match=message):
        HfEngine(qwen3_5_folder, make_config().rollout, media, seed=0, intervention=steer)
    PolicyModel(model, family, temperature=1.0, intervention=replace(steer, layers=(1, 3)))


def test_ranks_cannot_share_a_sequence(model: Any, family: Family) -> None:
    with pytest.raises(ConfigError) as refused:
        PolicyModel(model, family, temperature=1.0).share(OutlinedRanks(0, 2))
    assert str(refused.value) == (
        "learner.sequence_parallel=2: Qwen35 has layers with linear attention, whose state runs through a whole "
        "sequence, so ranks cannot share one; set it to 1"
    )


# --- pictures ---


def test_text_and_pixels_are_the_processors(qwen3_5_folder: Path, media: MediaStore) -> None:
    """Thirty random sizes."""
    bench = Bench(qwen3_5_folder, media, [(84, 56), (56, 56)])
    draw, family = np.random.default_rng(1), bench.family
    for i in range(30):
        width, height = draw.integers(20, 400, 2).tolist()
        medium = bench.picture(i, width, height)
        inputs = family.processor(text=["<|image_pad|>"], images=[media.open(medium)], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == family.tokenizer(family.expanded(medium))["input_ids"]
        assert len(inputs["input_ids"][0]) == family.tokens(medium)
        (features,) = family.features([medium], [media.open(medium)])
        assert torch.equal(features["pixel_values"], inputs["pixel_values"])
    assert set(family.banned_ids) == set(family.tokenizer.convert_tokens_to_ids(list(MARKERS.values())))


def test_a_change_of_the_picture_changes_the_token_at_its_place(qwen3_5_folder: Path, media: MediaStore) -> None:
    bench = Bench(qwen3_5_folder, media, [(84, 56), (56, 56)])
    check_places(bench, 84, 56)
    check_places(bench, 140, 112)


# --- adapters, frozen encoders, operations ---


def test_adapters_on_linear_attention_train_and_merge(
    model: Any, family: Family, media: MediaStore, samples: Any
) -> None:
    policy, batch = PolicyModel(model, family, temperature=1.0), Collator(family, media)(samples)
    with torch.no_grad():
        before = policy(batch).log_probs
    targets = ("q_proj", "in_proj_qkv", "in_proj_a", "out_proj")
    adapters = Adapters(policy, LoraConfig(rank=2, alpha=4.0, targets=targets, vision=False))
    policy(batch).log_probs.sum().backward()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * (2 + 3 * 2) and all(
        "lora_" in name and p.grad is not None for name, p in trained.items()
    )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.add_(0.1 * torch.randn_like(parameter)) if "lora_B" in name else None
        after = policy(batch).log_probs
        assert (after - before).abs().max() > 1e-2
        plain = load_model(_folder(model), dtype="float32")
        plain.load_state_dict(dict(adapters.merged(policy.model.state_dict().items())))
        assert torch.allclose(PolicyModel(plain, family, temperature=1.0)(batch).log_probs, after, atol=2e-5)


def _folder(model: Any) -> Path:
    return Path(model.config._name_or_path)


def test_a_frozen_encoder_leaves_the_text_model_to_train(
    model: Any, family: Family, media: MediaStore, samples: Any
) -> None:
    policy, collate = PolicyModel(model, family, temperature=1.0), Collator(family, media)
    whole = policy(collate(samples)).log_probs.sum()
    wanted = list(model.get_decoder().parameters())
    expected = torch.autograd.grad(whole, wanted)
    family.vision_encoder(model).requires_grad_(False)
    found = policy(collate(samples)).log_probs.sum()
    assert all(torch.equal(one, other) for one, other in zip(torch.autograd.grad(found, wanted), expected, strict=True))
    assert family.projector(model) == (model.model.visual.merger,)


def test_operations_and_states_by_hand(model: Any, family: Family) -> None:
    """Two of four layers have linear attention: 1 key head and 2 value heads of 128, 512 channels, 4 tokens seen."""
    state, channels = 2 * 128 * 128, 2 * 128 + 2 * 128
    assert family.linear_attention_flops == 2 * (6 * state + 2 * 4 * channels)
    assert family.state_bytes == 4 * 2 * (state + 3 * channels)
    counter, mlp = FlopCounter(model, family), 3 * 64 * 64
    linear = 64 * (channels + 2 * 128 + 2 + 2) + 2 * 128 * 64
    softmax = 64 * (2 * 4 * 32 + 2 * 2 * 32) + 4 * 32 * 64
    of_a_token = 2 * 2 * (linear + softmax + 2 * mlp) + family.linear_attention_flops
    assert counter.text(Packing.apart((5,))) == 5 * of_a_token + 4 * 2 * 4 * 32 * 15


def test_a_cache_holds_states_beside_keys(samples: Any) -> None:
    prompt, response = len(samples[-1].prompt.token_ids), len(samples[-1].response_token_ids)
    of_group = 10 * (prompt + 3 * response) + 3 * 1000
    assert Cache(7 * of_group, 10, 1000).sequences(samples[-1:], 3) == 21
    assert Cache(7 * of_group - 1, 10, 1000).sequences(samples[-1:], 3) == 20


def test_the_family_is_found_by_its_type(family: Family) -> None:
    assert type(family) is Qwen35 is family_of("qwen3_5", "m")


@pytest.mark.parametrize("written", ["<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"])
def test_markers_of_a_template_around_a_video_stay(
    qwen3_5_folder: Path, tmp_path: Path, media: MediaStore, written: str
) -> None:
    """As in transformers since 5.10; a bare placeholder gives the text of earlier versions."""
    shutil.copytree(qwen3_5_folder, tmp_path / "m")
    path = tmp_path / "m" / "chat_template.jinja"
    usual = "<|vision_start|><|video_pad|><|vision_end|>"
    assert usual in path.read_text()
    path.write_text(path.read_text().replace(usual, written))
    family = load_family(tmp_path / "m")
    video = media.put_video(clip(noise(2, 2, 28, 56)), VideoSampling(1.0, 2, 2), VideoLimits())
    prompt = ChatRenderer(family, "").prompt(id="p", kind="", question="what ?", answer="", media=[video])
    expected = family.processor(
        text=[f"<|im_start|>user {written}what ?<|im_end|><|im_start|>assistant "],
        videos=[torch.zeros(2, 3, 28, 56, dtype=torch.uint8)],
        video_metadata=[{"fps": 1.0, "total_num_frames": 2, "frames_indices": [0, 1]}],
        videos_kwargs={"do_sample_frames": False, "do_resize": False},
    )
    assert list(prompt.token_ids) == list(expected["input_ids"][0])
    tokens = family.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert tokens.count("<|vision_start|>") == (2 if written == usual else 1)
