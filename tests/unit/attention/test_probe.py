"""The probe against transformers' own eager attention: four families, pictures, videos, padding, packing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ral_system.attention import attention_policy
from ral_system.attention.probe import IMPLEMENTATION, AttentionProbe, Capture, PackedRows
from ral_system.attention.sequence import LayerAttention, SequenceAttention
from ral_system.families.known import family_of

START, END, IMAGE, VIDEO = 1, 2, 3, 4
TEXT = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def build_qwen2_vl() -> PreTrainedModel:
    vision = VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    )


def build_qwen2_5_vl() -> PreTrainedModel:
    vision = VISION | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    )


def build_qwen3_vl() -> PreTrainedModel:
    vision = VISION | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    text = TEXT | {"head_dim": 16, "rope_parameters": ROPE | {"mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS))


def build_qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**TEXT))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2_vl": build_qwen2_vl,
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "qwen2": build_qwen2,
}
CONTENTS: dict[str, list[tuple[int, tuple[int, int, int]]]] = {  # media token, grid of patches (time, height, width)
    "text": [],
    "image": [(IMAGE, (1, 4, 6))],
    "images": [(IMAGE, (1, 4, 4)), (IMAGE, (1, 2, 6)), (IMAGE, (1, 6, 2))],
    "video": [(VIDEO, (3, 4, 4))],
    "image and video": [(IMAGE, (1, 2, 4)), (VIDEO, (2, 4, 2))],
}
CASES = [(family, content) for family in FAMILIES for content in CONTENTS if family != "qwen2" or content == "text"]

Inputs = dict[str, Any]


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {name: build().eval() for name, build in FAMILIES.items()}


@pytest.fixture
def load(models: dict[str, PreTrainedModel]) -> Callable[[str, str], PreTrainedModel]:
    def loaded(family: str, implementation: str) -> PreTrainedModel:
        models[family].set_attn_implementation(implementation)
        return models[family]

    return loaded


def attention_of(model: PreTrainedModel) -> list[nn.Module]:
    return [layer.self_attn for layer in model.get_decoder().layers]


def sequence(family: str, content: str, seed: int = 0) -> Inputs:
    """Some text, the media, some text; pixels at random."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(5, 40, (count,), generator=generator).tolist()

    ids, pixels, grids = words(3 + seed), {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    for token, (time, height, width) in CONTENTS[content]:
        frames, cells = (time, height * width // 4) if family == "qwen3_vl" else (1, time * height * width // 4)
        for _ in range(frames):  # Qwen3-VL writes a time stamp before each frame
            ids += [*words(1), START, *[token] * cells, END]
        pixels[token].append(torch.randn(time * height * width, 3 * 2 * 14 * 14, generator=generator))
        grids[token].append([time, height, width])
    ids += words(9)
    found: Inputs = {"input_ids": torch.tensor([ids])}
    if family != "qwen2":
        found["mm_token_type_ids"] = (found["input_ids"] == IMAGE).int() + 2 * (found["input_ids"] == VIDEO).int()
    for token, pixel_name, grid_name in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        if pixels[token]:
            found |= {pixel_name: torch.cat(pixels[token]), grid_name: torch.tensor(grids[token])}
    return found


def together(sequences: list[Inputs], pad: str) -> Inputs:
    """Several sequences as one batch, padded on one side."""
    longest = max(s["input_ids"].shape[1] for s in sequences)

    def padded(row: Tensor) -> Tensor:
        space = longest - row.shape[1]
        return torch.nn.functional.pad(row, (space, 0) if pad == "left" else (0, space))

    ones = [s | {"attention_mask": torch.ones_like(s["input_ids"])} for s in sequences]
    rows = {"input_ids", "mm_token_type_ids", "attention_mask"}
    return {
        name: torch.cat([padded(s[name]) if name in rows else s[name] for s in ones if name in s])
        for name in {name for s in ones for name in s}
    }


def packed(model: PreTrainedModel, sequences: list[Inputs]) -> tuple[Inputs, tuple[int, ...]]:
    """Pack sequences one behind the other, and return their lengths; positions start again in each.

    From one-dimensional positions transformers itself makes a mask that separates the sequences.
    """
    lengths = tuple(s["input_ids"].shape[1] for s in sequences)
    found = {
        name: torch.cat([s[name] for s in sequences if name in s], dim=1 if name.endswith("_ids") else 0)
        for name in {name for s in sequences for name in s}
    }
    positions = []
    for s, length in zip(sequences, lengths, strict=True):
        if "mm_token_type_ids" in s:
            media = {name: s[name] for name in ("image_grid_thw", "video_grid_thw") if name in s}
            positions.append(model.model.get_rope_index(s["input_ids"], s["mm_token_type_ids"], **media)[0])
        else:
            positions.append(torch.arange(length)[None])
    found["position_ids"] = torch.cat(positions, dim=-1)
    return found | ({"segment_lengths": lengths} if "mm_token_type_ids" in found else {}), lengths


def expected_policy(model: PreTrainedModel, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """From eager attention of the last layer: p [B, T, T], and the logits."""
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, use_cache=False)
    alpha = output.attentions[-1].mean(1)
    others = alpha.tril(-1)
    return others / others.sum(-1, keepdim=True).clamp(min=1e-30), output.logits


def probed(model: PreTrainedModel, inputs: Inputs) -> tuple[Capture, Tensor]:
    with torch.no_grad(), AttentionProbe(attention_of(model)).capture(whole=True) as (capture,):
        logits = model(**inputs, use_cache=False).logits
    return capture, logits


def every_row(lengths: tuple[int, ...]) -> PackedRows:
    return PackedRows(lengths, tuple(torch.arange(length) for length in lengths))


def policy(query_HTD: Tensor, key_KTD: Tensor, scale: float) -> Tensor:
    rows = torch.arange(query_HTD.shape[1])
    return attention_policy(query_HTD.transpose(0, 1), key_KTD.transpose(0, 1), rows, scale=scale)


Load = Callable[[str, str], PreTrainedModel]


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
    contents = ["text", "text"] if family == "qwen2" else ["images", "text", "image and video"]
    sequences = [sequence(family, content, seed) for seed, content in enumerate(contents)]
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
    contents = ["text", "text"] if family == "qwen2" else ["images", "text", "image and video", "image"]
    sequences = [sequence(family, content, seed) for seed, content in enumerate(contents)]
    alone = [expected_policy(load(family, "eager"), inputs) for inputs in sequences]
    model = load(family, IMPLEMENTATION)
    inputs, lengths = packed(model, sequences)
    with torch.no_grad(), AttentionProbe(attention_of(model)).capture(every_row(lengths)) as (capture,):
        logits = model(**inputs, use_cache=False).logits
    parts = zip(capture.sequences(), logits[0].split(lengths), alone, strict=True)
    for layer, found_logits, (expected, expected_logits) in parts:
        rows = torch.arange(len(layer.query))
        found = attention_policy(layer.query, layer.key, rows, scale=layer.scale)
        assert (found - expected[0]).abs().max() <= 2e-6
        assert torch.allclose(found_logits, expected_logits[0], atol=2e-5)


def test_packed_sequences_take_no_mask(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION)
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match="packed sequences take no attention mask"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1]]), segment_lengths=(2, 2))


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
    for layer in capture.sequences():
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
    (at,) = capture.sequences()
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


@pytest.mark.parametrize("read", [("rows", "rest"), ("rows",), ("rest",)])
def test_captured_rows_have_the_values_and_gradients_of_indexing(read: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 3, 11, 4, generator=generator).requires_grad_()
    key, weights = torch.randn(1, 3, 11, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    rows = PackedRows((4, 7), (torch.tensor([3, 1]), torch.tensor([6, 0, 2])))
    at = torch.tensor([3, 1, 10, 4, 6])  # the same in the packed sequence
    found = []
    for by_indexing in (False, True):
        capture = Capture(rows, whole=False)
        whole, selected = capture.take(query, key, 1.0), capture.row_query
        if by_indexing:
            whole, selected = query, query[0].transpose(0, 1)[at]
        assert selected is not None
        parts = {"rows": (selected * weights).square().sum(), "rest": (whole * key).square().sum()}
        (gradient,) = torch.autograd.grad(sum(parts[name] for name in read), query)
        found.append((selected.detach(), whole.detach(), gradient))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_query_is_kept_whole_on_request_only() -> None:
    rows = PackedRows((2,), (torch.tensor([1]),))
    tensors = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    for whole in (False, True):
        capture = Capture(rows, whole)
        capture.take(*tensors, 1.0)
        assert (capture.query is not None) == whole


def test_rows_outside_of_their_sequence_are_refused_and_never_read_from_the_next(load: Load) -> None:
    probe = AttentionProbe(attention_of(load("qwen2", IMPLEMENTATION)))
    for position in (6, -1):
        rows = PackedRows((6, 6), (torch.tensor([position]), torch.tensor([0])))
        with pytest.raises(ValueError, match=r"rows \(1,\) must lie in 0..5 of sequence 0"), probe.capture(rows):
            pass


def test_rows_of_a_batch_that_is_not_packed_are_refused(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION)
    with (
        pytest.raises(ValueError, match=r"sequences of \(2,\) tokens packed into one, but query is .* = \(2, "),
        AttentionProbe(attention_of(model)).capture(PackedRows((2,), (torch.tensor([1]),))),
    ):
        model(torch.tensor([[5, 6], [5, 6]]))


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_rows_that_do_not_fit_their_keys_are_refused(backend: Any) -> None:
    layer = LayerAttention(torch.zeros(2, 2, 16), torch.zeros(6, 1, 16), 0.3)
    with pytest.raises(ValueError, match=r"rows \(2,\) must lie in 0..5 of key \(6, 1, 16\), got 4..9"):
        SequenceAttention((layer,), torch.tensor([4, 9]), None, "mean", backend)
    with pytest.raises(ValueError, match=r"rows \(3,\) do not fit query \(2, 2, 16\)"):
        SequenceAttention((layer,), torch.tensor([1, 2, 3]), None, "mean", backend)


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
        capture.sequences()


@pytest.mark.parametrize(("layers", "indices"), [("all", [0, 1]), ((0,), [0]), ((-1, 0), [0, 1])])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_captured_by_choice(load: Load, family: str, layers: Any, indices: list[int]) -> None:
    inputs = sequence(family, "text" if family == "qwen2" else "image")
    with torch.no_grad():
        attentions = load(family, "eager")(**inputs, output_attentions=True, use_cache=False).attentions
        model = load(family, IMPLEMENTATION)
        with AttentionProbe(attention_of(model), layers).capture(whole=True) as captures:
            model(**inputs, use_cache=False)
    assert len(captures) == len(indices)
    for capture, index in zip(captures, indices, strict=True):
        others = attentions[index][0].mean(0).tril(-1)
        found = policy(capture.query[0], capture.key[0], capture.scale)  # type: ignore[index]
        assert (found - others / others.sum(-1, keepdim=True).clamp(min=1e-30)).abs().max() <= 2e-6


def test_a_layer_that_is_not_there_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match=r"layers=\[0, 2\]: the model has 2 layers, so no layer 2"):
        AttentionProbe(attention_of(load("qwen2", IMPLEMENTATION)), (0, 2))
    with pytest.raises(ValueError, match=r"layers=\[-1, 1\] names a layer of the model's 2 twice"):
        AttentionProbe(attention_of(load("qwen2", IMPLEMENTATION)), (-1, 1))


def test_only_the_last_text_layer_is_captured_by_default(load: Load) -> None:
    inputs = sequence("qwen2_5_vl", "image")
    capture, _ = probed(load("qwen2_5_vl", IMPLEMENTATION), inputs)
    assert capture.query is not None and capture.key is not None
    length = inputs["input_ids"].shape[1]
    assert capture.query.shape == (1, 4, length, 16)
    assert capture.key.shape == (1, 2, length, 16)
    assert capture.scale == pytest.approx(16**-0.5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2"])
def test_each_family_knows_its_attention(load: Load, family: str) -> None:
    model = load(family, IMPLEMENTATION)
    known = family_of(model.config.model_type, "tiny").attention_classes
    assert {type(layer).__name__ for layer in attention_of(model)} <= set(known)


def test_a_model_loaded_with_other_attention_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="the model runs attention 'sdpa'; load it with 'probed_sdpa'"):
        AttentionProbe(attention_of(load("qwen2", "sdpa")))
