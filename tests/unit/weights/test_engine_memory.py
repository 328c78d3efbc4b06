"""Published tensors in the memory of models that rename, fuse, pad, tie and split them as vLLM does."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ral_system.errors import WeightSyncError
from ral_system.types import EngineNames, WeightManifest
from ral_system.weights.engine_memory import EngineMemory, held_manifest
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.transfer import Piece
from tests.offered import manifest_of, whole_pieces

Q, K, WORDS, HIDDEN = 8, 4, 7, 6


class Rank(nn.Module):
    """One of `ranks`: q, k and v are one matrix of its heads, o its columns, the vocabulary is padded and split."""

    def __init__(self, rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32, kv_copies: int = 1) -> None:
        super().__init__()
        self.rank, self.ranks, self.kv_copies = rank, ranks, kv_copies
        self.q, self.k, self.words = Q // ranks, K * kv_copies // ranks, 8 // ranks
        self.qkv = nn.Linear(HIDDEN, self.q + 2 * self.k, dtype=dtype)
        self.o = nn.Linear(Q // ranks, HIDDEN, bias=False, dtype=dtype)
        self.embed = nn.Embedding(self.words, HIDDEN, dtype=dtype)
        self.head = nn.Linear(HIDDEN, self.words, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.LayerNorm(HIDDEN, bias=False, dtype=torch.float32)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, weight in weights:
            part, _, kind = name.removeprefix("model.layer.").partition("_proj.")
            if part in ("q", "k", "v"):
                rows, sharers = (self.q, self.ranks) if part == "q" else (self.k, self.ranks // self.kv_copies)
                start = {"q": 0, "k": self.q, "v": self.q + self.k}[part]
                own = weight.narrow(0, self.rank % sharers * rows, rows)
                getattr(self.qkv, kind).data[start : start + rows].copy_(own)
            elif part == "o":
                self.o.weight.data.copy_(weight.narrow(1, self.rank * self.q, self.q))
            elif name == "model.embed.weight":
                own = weight[self.rank * self.words : (self.rank + 1) * self.words]
                self.embed.weight[: len(own)].data.copy_(own)
                self.embed.weight[len(own) :].data.fill_(0)
            elif name == "model.norm.weight":
                self.norm.weight.data.copy_(weight)
            else:
                raise ValueError(f"no parameter named {name!r}")


SAME_NAMES = EngineNames()


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"q_proj.weight": (Q, HIDDEN), "k_proj.weight": (K, HIDDEN), "v_proj.weight": (K, HIDDEN)}
    shapes |= {"q_proj.bias": (Q,), "k_proj.bias": (K,), "v_proj.bias": (K,), "o_proj.weight": (HIDDEN, Q)}
    whole = {f"model.layer.{name}": torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    embed, norm = torch.randn(WORDS, HIDDEN).to(dtype), torch.randn(HIDDEN).to(dtype)
    return whole | {"model.embed.weight": embed, "model.norm.weight": norm}


def memories(ranks: list[Rank], published: WeightManifest, names: EngineNames = SAME_NAMES) -> list[EngineMemory]:
    return [EngineMemory.traced(rank, rank.load_weights, published.tensors, names) for rank in ranks]


def held(found: list[EngineMemory], published: WeightManifest) -> WeightManifest:
    names = tuple(published.tensors)
    return held_manifest(published, names, [memory.held(names, published.tensors) for memory in found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "kv_copies"), [(1, 1), (2, 1), (4, 2)])
def test_what_is_written_is_what_the_loader_would_have_loaded(dtype: torch.dtype, ranks: int, kv_copies: int) -> None:
    whole = tensors(dtype)
    published = manifest_of(3, whole)
    engine = [Rank(r, ranks, dtype, kv_copies) for r in range(ranks)]
    expected = [Rank(r, ranks, dtype, kv_copies) for r in range(ranks)]
    before = [{name: p.clone() for name, p in rank.named_parameters()} for rank in engine]
    found = memories(engine, published)
    for rank, old in zip(engine, before, strict=True):  # finding the places writes nothing but padding
        assert all(torch.equal(p, old[name]) for name, p in rank.named_parameters() if name != "embed.weight")
    for memory, rank, other in zip(found, engine, expected, strict=True):
        read_back = memory.load(whole_pieces(whole), published.tensors)
        assert read_back == memory.held(tuple(whole), published.tensors)
        with torch.no_grad():
            other.load_weights(whole.items())
        assert all(torch.equal(p, q) for p, q in zip(rank.parameters(), other.parameters(), strict=True))
    verify_loaded(published, held(found, published))


def by_row(whole: Mapping[str, Tensor], rows: int) -> Iterator[Piece]:
    for name, tensor in whole.items():
        for first in range(0, len(tensor), rows) if tensor.ndim > 1 else [0]:
            yield Piece(name, tensor[first : first + rows] if tensor.ndim > 1 else tensor, first)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("ranks", "kv_copies"), [(1, 1), (2, 1), (4, 2)])
def test_pieces_make_up_the_whole(ranks: int, kv_copies: int, rows: int) -> None:
    whole = tensors()
    published = manifest_of(3, whole)
    engine, expected = [[Rank(r, ranks, kv_copies=kv_copies) for r in range(ranks)] for _ in range(2)]
    found = memories(engine, published)
    read_back = [memory.load(by_row(whole, rows), published.tensors) for memory in found]
    for memory, other in zip(memories(expected, published), expected, strict=True):
        memory.load(whole_pieces(whole), published.tensors)
        assert memory.held(tuple(whole), published.tensors) == read_back[other.rank]
    for rank, other in zip(engine, expected, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(rank.parameters(), other.parameters(), strict=True))
    verify_loaded(published, held_manifest(published, tuple(whole), read_back))


def test_a_piece_that_does_not_come_or_does_not_fit_is_missed() -> None:
    whole = tensors() | {"model.layer.o_proj.weight": torch.zeros(HIDDEN, Q)}  # missing rows change no sum
    published = manifest_of(3, whole)
    (memory,) = memories([Rank()], published)
    for first, wrong in ((2, None), (2, torch.zeros(1, Q + 1)), (0, torch.zeros(HIDDEN - 1, Q))):
        come = [piece for piece in by_row(whole, 1) if piece[::2] != ("model.layer.o_proj.weight", first)]
        come += [] if wrong is None else [Piece("model.layer.o_proj.weight", wrong, first)]
        read_back = memory.load(come, published.tensors)
        with pytest.raises(WeightSyncError, match=r"1 missing: model.layer.o_proj.weight"):
            verify_loaded(published, held_manifest(published, tuple(whole), [read_back]))


def test_an_engine_that_holds_more_precision_has_the_published_digest() -> None:
    whole = tensors(torch.bfloat16)
    published = manifest_of(3, whole)
    found = memories([Rank()], published)
    found[0].load(whole_pieces(whole), published.tensors)
    verify_loaded(published, held(found, published))


def test_what_comes_in_another_dtype_is_read_in_the_published_one() -> None:
    whole = tensors(torch.bfloat16)
    published = manifest_of(3, whole)
    (memory,) = memories([Rank()], published)  # in float32
    memory.load(whole_pieces({name: tensor.float() for name, tensor in whole.items()}), published.tensors)
    verify_loaded(published, held([memory], published))
    bits = {name: tensor.view(torch.int16) for name, tensor in whole.items()}
    read_back = memory.load(whole_pieces(bits), published.tensors)
    with pytest.raises(WeightSyncError, match="differ"):
        verify_loaded(published, held_manifest(published, tuple(whole), [read_back]))


def test_an_engine_may_know_weights_by_other_names_and_lack_some() -> None:
    whole = {name.replace("model.", "model.own."): tensor for name, tensor in tensors().items()}
    whole["tail.weight"] = torch.ones(3)
    published = manifest_of(3, whole)
    engine = [Rank(0, 1)]
    found = memories(engine, published, EngineNames({"model.own.": "model."}, unused=("tail.",)))
    found[0].load(whole_pieces(whole), published.tensors)
    assert torch.equal(engine[0].norm.weight, whole["model.own.norm.weight"])
    assert held(found, published).tensors == {n: d for n, d in published.tensors.items() if n != "tail.weight"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layer.k_proj.bias", lambda rank: rank.qkv.bias[rank.q :]),
        ("model.layer.o_proj.weight", lambda rank: rank.o.weight[-1]),
        ("model.embed.weight", lambda rank: rank.embed.weight[0]),
    ],
)
def test_one_changed_bit_on_any_rank_names_the_tensor(ranks: int, name: str, place: Callable[[Rank], Tensor]) -> None:
    whole = tensors()
    published = manifest_of(3, whole)
    engine = [Rank(r, ranks) for r in range(ranks)]
    found = memories(engine, published)
    for memory in found:
        memory.load(whole_pieces(whole), published.tensors)
    place(engine[-1]).data.view(torch.int32)[0] ^= 1
    with pytest.raises(WeightSyncError, match=rf"1 different: {name} \(checksum \w{{8}}…, published \w{{8}}…\)"):
        verify_loaded(published, held(found, published))


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layer.k_proj.bias", lambda rank: rank.qkv.bias[rank.q :]),  # ranks 0 and 2 hold the same keys
        ("model.norm.weight", lambda rank: rank.norm.weight),  # all ranks hold all of it
    ],
)
def test_copies_of_a_part_must_be_alike(rank: int, name: str, place: Callable[[Rank], Tensor]) -> None:
    whole = tensors()
    published = manifest_of(3, whole)
    engine = [Rank(r, 4, kv_copies=2) for r in range(4)]
    found = memories(engine, published)
    for memory in found:
        memory.load(whole_pieces(whole), published.tensors)
    place(engine[rank]).data[0] += 1
    with pytest.raises(WeightSyncError, match=f"1 different: {name} .checksum copies d…"):
        verify_loaded(published, held(found, published))


def test_a_tensor_of_which_a_part_is_missing_is_named() -> None:
    whole = tensors()
    published = manifest_of(3, whole)
    found = memories([Rank(r, 2) for r in range(2)], published)
    for memory in found:
        memory.load(whole_pieces(whole), published.tensors)
    with pytest.raises(WeightSyncError, match=r"8 missing: model.embed.weight, model.layer.k_proj.bias"):
        verify_loaded(published, held(found[:1], published))


def test_what_was_not_published_or_has_no_place_is_named() -> None:
    whole = tensors()
    published = manifest_of(3, whole)
    (memory,) = memories([Rank()], published)
    memory.load(whole_pieces(whole), published.tensors)
    less = replace(published, tensors={name: d for name, d in published.tensors.items() if "norm" not in name})
    with pytest.raises(WeightSyncError, match=r"1 unexpected: engine:norm.weight"):
        verify_loaded(less, held([memory], less))
    more = manifest_of(3, {**whole, "model.extra.weight": torch.zeros(1)})
    with pytest.raises(WeightSyncError, match=r"1 missing: model.extra.weight"):
        verify_loaded(more, held([memory], more))
    with pytest.raises(WeightSyncError, match=r"cannot load the published weights: no parameter named 'model.extra"):
        memories([Rank()], more)


def test_a_loader_that_copies_elsewhere_is_refused() -> None:
    published = manifest_of(1, {"w": torch.zeros(4)})
    elsewhere = torch.empty(4)

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        for _, weight in weights:
            elsewhere.copy_(weight)

    with pytest.raises(WeightSyncError, match=r"holds w in another form than it is published in .* set rollout=hf$"):
        EngineMemory.traced(nn.Linear(4, 1), load, published.tensors, EngineNames())


@pytest.mark.parametrize("compute", ["w + 1", "-w", "w.flip(0)", "w.t().contiguous()", "w.double()"])
def test_a_loader_that_computes_is_refused(compute: str) -> None:
    model, published = nn.Linear(4, 4, bias=False), manifest_of(1, {"w": torch.zeros(4, 4)})

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        for _, weight in weights:
            model.weight.data.copy_(eval(compute, {"w": weight}))

    with pytest.raises(WeightSyncError, match=r"^the engine would load what it computes from w, so it cannot"):
        EngineMemory.traced(model, load, published.tensors, EngineNames())


def test_a_loader_may_take_views() -> None:
    model, published = nn.Linear(4, 4, bias=False), manifest_of(1, {"w": torch.zeros(4, 4)})
    whole = torch.randn(4, 4)

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        for _, weight in weights:
            model.weight.data.copy_(weight.detach().view(2, 2, 4)[:].view(4, 4))

    memory = EngineMemory.traced(model, load, published.tensors, EngineNames())
    memory.load(whole_pieces({"w": whole}), published.tensors)
    assert torch.equal(model.weight, whole)


def test_a_loader_that_copies_into_another_shape_is_refused() -> None:
    model, published = nn.Linear(4, 2, bias=False), manifest_of(1, {"w": torch.zeros(4)})

    def load(weights: Iterable[tuple[str, Tensor]]) -> None:
        for _, weight in weights:
            model.weight.data.copy_(weight)

    with pytest.raises(WeightSyncError, match=r"would copy w, \[4\], into memory of another shape, \[2, 4\], so it"):
        EngineMemory.traced(model, load, published.tensors, EngineNames())


def test_a_model_that_keeps_the_names_ties_what_is_tied() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False), "b": nn.Linear(3, 2, bias=False)})
    model["b"].weight = model["a"].weight
    memory, published = EngineMemory.same_names(model), manifest_of(1, {"a.weight": torch.ones(2, 3)})
    memory.load(whole_pieces({"a.weight": torch.ones(2, 3), "c.weight": torch.ones(1)}), published.tensors)
    verify_loaded(published, held([memory], published))
    both = manifest_of(1, {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 3)})
    with pytest.raises(WeightSyncError, match=r"the engine holds b.weight in memory that it shares with a.weight, so"):
        EngineMemory.same_names(model).load([], both.tensors)


def test_parts_of_one_matrix_may_not_overlap() -> None:
    model, published = nn.Linear(4, 4, bias=False), manifest_of(1, {n: torch.zeros(2, 4) for n in ("first", "second")})

    def load(from_row: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        for row, (_, weight) in zip((0, from_row), weights, strict=True):
            model.weight.data[row : row + 2].copy_(weight)

    for from_row in (2, 1):
        memory = EngineMemory.traced(model, partial(load, from_row), published.tensors, SAME_NAMES)
        with (
            nullcontext() if from_row == 2 else pytest.raises(WeightSyncError, match="second in memory that it shares")
        ):
            memory.load([], published.tensors)
