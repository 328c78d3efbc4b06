"""Which rows and layers a probe keeps, and what it refuses."""

from typing import Any

import pytest
import torch

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.probe import IMPLEMENTATION, AttentionProbe, Capture, PackedRows
from ral_system.families.known import family_of
from tests.unit.attention.probed import FAMILIES, Load, attention_of, policy, probed, sequence


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
        with pytest.raises(ValueError, match=r"rows \(1,\) must lie in 0..5 of group 0"), probe.capture(rows):
            pass


def test_rows_of_a_batch_that_is_not_packed_are_refused(load: Load) -> None:
    model = load("qwen2", IMPLEMENTATION)
    with (
        pytest.raises(ValueError, match=r"groups of \(2,\) tokens packed into one, but query is .* = \(2, "),
        AttentionProbe(attention_of(model)).capture(PackedRows((2,), (torch.tensor([1]),))),
    ):
        model(torch.tensor([[5, 6], [5, 6]]))


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_rows_that_do_not_fit_their_keys_are_refused(backend: Any) -> None:
    layer = LayerAttention(torch.zeros(2, 2, 16), torch.zeros(6, 1, 16), 0.3)
    with pytest.raises(ValueError, match=r"rows \(2,\) must lie in 0..5 of key \(6, 1, 16\), got 4..9"):
        GroupAttention.alone((layer,), torch.tensor([4, 9]), backend=backend)
    with pytest.raises(ValueError, match=r"rows \(3,\) do not fit query \(2, 2, 16\)"):
        GroupAttention.alone((layer,), torch.tensor([1, 2, 3]), backend=backend)


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
