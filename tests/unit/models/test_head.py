"""The head as a module: its parameters, the choice of dense or tiled, and the policy's outputs with tiles."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ral_system.algorithms import tiled_head
from ral_system.algorithms.token_read import TokenRead, TokenValues
from ral_system.batches.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.models.head import TokenHead
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.types import Sample

NONE = torch.zeros(0, dtype=torch.int64)


@pytest.fixture
def in_tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def switch() -> None:
        monkeypatch.setattr(tiled_head, "DENSE_BYTES", 0)
        monkeypatch.setattr(tiled_head, "tile_shape", lambda tokens, hidden: (5, 50))

    return switch


def test_a_head_has_the_parameters_of_the_layer_that_it_replaces() -> None:
    for bias in (True, False):
        layer = nn.Linear(3, 5, bias=bias)
        head = TokenHead.of(layer)
        assert head.weight is layer.weight and head.bias is layer.bias
        assert TokenHead.of(head) is head
        assert head.state_dict().keys() == layer.state_dict().keys()
        x = torch.randn(2, 4, 3)
        assert torch.equal(head(x), layer(x))


def test_tiles_are_for_what_exceeds_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(tiled_head, "tiled_values", lambda *args, **settings: used.append(len(args[3])))
    head = TokenHead(4, 1024)
    for tokens in (2048, 2049):
        head(torch.randn(tokens, 4), torch.zeros(tokens, dtype=torch.int64), TokenRead(), 1.0, NONE)
    assert used == [2049]


def test_a_head_of_16_bits_reads_float32_logits_however_few() -> None:
    """At logits of some ten, bfloat16 has steps of 0.06."""
    torch.manual_seed(0)
    head, hidden = TokenHead(64, 50, bias=False, dtype=torch.bfloat16), torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight *= 40
    targets = torch.tensor([4, 0, 49])
    exact = (hidden.double() @ head.weight.double().t()).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    values = head(hidden, targets, TokenRead(), 1.0, NONE)
    torch.testing.assert_close(values.log_probs.double(), exact, rtol=1e-5, atol=1e-5)
    rounded = head(hidden).double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert (rounded - exact).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_a_policy_in_tiles_is_the_dense_one(
    tiny_model: Path,
    media: MediaStore,
    draw_samples: Callable[[int], list[Sample]],
    in_tiles: Callable[[], None],
    tied: bool,
) -> None:
    model, family = load_model(tiny_model, dtype="float32"), load_family(tiny_model)
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    policy = PolicyModel(model, family, temperature=0.7)
    batch = Collator(family, media)(tuple(draw_samples(5)))
    embedding = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embedding) == tied

    def run() -> tuple[TokenValues, dict[str, Tensor]]:
        output = policy(batch, tokens=TokenRead(entropy=True, top=3))
        assert torch.equal(output.log_probs[batch.response_mask], output.tokens.log_probs)
        model.zero_grad(set_to_none=True)
        (output.log_probs.sum() + 0.5 * output.entropy.sum()).backward()
        return output.tokens, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    dense, expected = run()
    in_tiles()
    tiled, found = run()
    for name in ("log_probs", "entropy"):
        torch.testing.assert_close(getattr(tiled, name), getattr(dense, name), rtol=1e-5, atol=1e-5)
    assert dense.top_ids is not None and tiled.top_ids is not None
    assert torch.equal(tiled.top1, dense.top1) and torch.equal(tiled.top_ids, dense.top_ids)
    assert found.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * largest), name
