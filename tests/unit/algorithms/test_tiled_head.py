"""Values of tiles, and their gradients, against the dense formulas in float64 at awkward sizes."""

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ral_system.algorithms import tiled_head
from ral_system.algorithms.distillation import kept_and_rest, token_divergence, top_tokens
from ral_system.algorithms.log_probs import entropy
from ral_system.algorithms.tiled_head import tiled_values
from ral_system.algorithms.token_read import Teacher, TokenRead, TokenValues
from ral_system.device_kind import meta_stands_for
from ral_system.planning.outline import Outlines

N, E, V, TEMPERATURE = 11, 6, 37, 0.7
BANNED = torch.tensor([5, 6, 7, 8, 9, 30])  # tokens 5 to 9 are a whole tile of the narrow shape
SHAPES = [(3, 5), (4, 37), (11, 8), (1, 1), (64, 64)]


class Case:
    """Hidden states, a head, and the log-probs of a rollout engine and a teacher."""

    def __init__(self, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(N, E, generator=g).to(dtype).requires_grad_()
        self.weight = torch.randn(V, E, generator=g).mul(scale).to(dtype).requires_grad_()
        self.bias = torch.randn(V, generator=g).to(dtype).requires_grad_()
        allowed = torch.tensor([v for v in range(V) if v not in BANNED])
        self.targets = allowed[torch.randint(len(allowed), (N,), generator=g)]
        self.ids = torch.stack([torch.randperm(V, generator=g)[:4] for _ in range(N)])
        logits = 2 * torch.randn(N, V, generator=g)
        self.log_q = logits.index_fill(-1, BANNED, -torch.inf).log_softmax(-1)
        self.parameters = (self.hidden, self.weight, self.bias)

    def teacher(self, kind: Any, beta: float) -> Teacher:
        return Teacher(self.log_q.split((4, 1, 6)), kind, beta)

    def tiled(self, read: TokenRead) -> TokenValues:
        return tiled_values(*self.parameters, self.targets, read, temperature=TEMPERATURE, banned_token_ids=BANNED)

    def dense(self) -> Tensor:
        """log p of the vocabulary, in float64: [N, V]."""
        hidden, weight, bias = (p.double() for p in self.parameters)
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return (logits / TEMPERATURE).index_fill(-1, BANNED, -torch.inf).log_softmax(-1)

    def gradients(self, values: Tensor) -> list[Tensor]:
        """Gradients of a sum with unlike factors."""
        factors = torch.linspace(-1, 2, values.numel()).view(values.shape).to(values)
        return list(torch.autograd.grad((values * factors).sum(), self.parameters, retain_graph=True))


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_head, "tile_shape", lambda tokens, hidden: request.param)


def same(found: list[Tensor], expected: list[Tensor], rtol: float = 2e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours.double() - theirs).abs().max() <= rtol * theirs.abs().max()


READS: dict[str, tuple[Callable[[Case], TokenRead], Callable[[TokenValues], Any], Callable[[Case, Tensor], Tensor]]] = {
    "log_probs": (
        lambda case: TokenRead(),
        lambda values: values.log_probs,
        lambda case, log_p: log_p.gather(-1, case.targets[:, None])[:, 0],
    ),
    "entropy": (
        lambda case: TokenRead(entropy=True),
        lambda values: values.entropy,
        lambda case, log_p: entropy(log_p),
    ),
    "kept": (
        lambda case: TokenRead(kept={"other": case.ids.flip(0), "some": case.ids}),
        lambda values: values.kept["some"].clamp(min=-80),
        lambda case, log_p: kept_and_rest(log_p, case.ids).clamp(min=-80),
    ),
} | {
    f"{kind} {beta}": (
        lambda case, kind=kind, beta=beta: TokenRead(teacher=case.teacher(kind, beta)),
        lambda values: values.divergence,
        lambda case, log_p, kind=kind, beta=beta: token_divergence(log_p, case.log_q.double(), kind, beta),
    )
    for kind, beta in (("reverse_kl", 0.5), ("forward_kl", 0.5), ("jsd", 0.2))
}


@pytest.mark.usefixtures("shape")
@pytest.mark.parametrize("name", READS)
def test_a_value_and_its_gradient_are_the_dense_ones(name: str) -> None:
    case = Case()
    read, pick, dense = READS[name]
    found, expected = pick(case.tiled(read(case))), dense(case, case.dense())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    same(case.gradients(found), case.gradients(expected))


@pytest.mark.usefixtures("shape")
def test_gradients_of_several_values_add_up() -> None:
    case, ids = Case(), torch.randint(V, (N, 3), generator=torch.Generator().manual_seed(1))
    read = TokenRead(entropy=True, kept={"a": case.ids, "b": ids}, teacher=case.teacher("jsd", 0.5))
    values, log_p = case.tiled(read), case.dense()
    assert values.divergence is not None
    found = values.log_probs - 0.3 * values.entropy + values.kept["a"].clamp(min=-80).sum(-1) + 2 * values.divergence
    slow = log_p.gather(-1, case.targets[:, None])[:, 0] - 0.3 * entropy(log_p)
    slow = slow + kept_and_rest(log_p, case.ids).clamp(min=-80).sum(-1)
    slow = slow + 2 * token_divergence(log_p, case.log_q.double(), "jsd", 0.5)
    same(case.gradients(found), case.gradients(slow))
    assert torch.equal(values.kept["b"].detach(), case.tiled(TokenRead(kept={"b": ids})).kept["b"].detach())


@pytest.mark.usefixtures("shape")
def test_constants_are_the_dense_ones() -> None:
    case = Case()
    values, log_p = case.tiled(TokenRead(top=4, whole=True)), case.dense().detach()
    assert values.top1.tolist() == (log_p.argmax(-1) == case.targets).tolist()
    assert not values.entropy.requires_grad and not values.top1.requires_grad
    assert values.whole is not None and values.top_ids is not None
    torch.testing.assert_close(values.whole.double(), log_p, rtol=1e-5, atol=1e-5)
    ids = top_tokens(log_p, case.targets, 4)
    assert values.top_ids.tolist() == ids.tolist()
    torch.testing.assert_close(values.kept["top"].detach().double(), kept_and_rest(log_p, ids), rtol=1e-5, atol=1e-5)
    top = case.tiled(TokenRead(top=99)).top_ids
    assert top is not None and [sorted(row) for row in top.tolist()] == [list(range(V))] * N


@pytest.mark.usefixtures("shape")
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_a_student_that_is_its_teacher_learns_exactly_nothing(kind: Any) -> None:
    case = Case()
    values = case.tiled(TokenRead(whole=True, kept={"teacher": case.ids}))
    assert values.whole is not None
    again = case.tiled(TokenRead(kept={"teacher": case.ids}, teacher=Teacher((values.whole,), kind, 0.5)))
    kept = token_divergence(again.kept["teacher"], values.kept["teacher"].detach(), kind)
    for found in (again.divergence, kept):
        assert found is not None and not found.any()
        assert not any(gradient.any() for gradient in case.gradients(found))


@pytest.mark.usefixtures("shape")
def test_large_logits_stay_finite() -> None:
    case = Case(scale=400.0)
    read = TokenRead(entropy=True, kept={"some": case.ids}, teacher=case.teacher("reverse_kl", 0.5))
    values = case.tiled(read)
    assert values.divergence is not None
    assert values.entropy.min() >= 0
    found = values.log_probs + values.entropy + values.kept["some"].clamp(min=-80).sum(-1) + values.divergence
    assert all(torch.isfinite(gradient).all() for gradient in case.gradients(found))


@pytest.mark.parametrize("name", READS)
def test_bfloat16_logits_are_not_rounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are those of float64 logits to float32 rounding; gradients are rounded twice, a tile's and the result."""
    monkeypatch.setattr(tiled_head, "tile_shape", lambda tokens, hidden: (4, 10))
    case = Case(torch.bfloat16)
    read, pick, dense = READS[name]
    found, expected = pick(case.tiled(read(case))), dense(case, case.dense())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = case.gradients(found)
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    same(gradients, [gradient.double() for gradient in case.gradients(expected)], rtol=2**-7)


def test_tensor_cores_are_given_16_bits_and_return_float32() -> None:
    """Tensors without memory stand for those of a GPU, whose product no CPU has."""
    left, right = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((3, 5), (5, 4)))
    with meta_stands_for("cuda"), Operations() as on_gpu:
        product = tiled_head._product(left, right)
    assert on_gpu.names == ["aten::mm.dtype"]
    assert (product.dtype, product.shape) == (torch.float32, (3, 4))
    with Operations() as on_cpu:
        tiled_head._product(left, right)
    assert on_cpu.names == ["aten::_to_copy", "aten::_to_copy", "aten::mm"]


class Operations(TorchDispatchMode):
    """Names of the operations that run inside the block."""

    def __enter__(self) -> Self:
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name + ("." + func._overloadname).replace(".default", ""))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_holds_no_more_than_64_mib(dtype: torch.dtype, kind: str) -> None:
    """At a 7B's width, beside the inputs and their gradients. More tiles, of each kind of block, add nothing."""
    tokens, hidden, vocabulary = 2000, 3584, 3000
    assert all(size < n for size, n in zip(tiled_head.tile_shape(tokens, hidden), (tokens, vocabulary), strict=True))
    x, weight = (torch.empty(n, hidden, dtype=dtype, device="meta", requires_grad=True) for n in (tokens, vocabulary))
    with meta_stands_for(kind), Outlines() as outlines:
        targets, banned = torch.zeros(tokens, dtype=torch.int64), torch.tensor([0, 1])
        read = TokenRead(entropy=True)
        values = tiled_values(x, weight, None, targets, read, temperature=0.7, banned_token_ids=banned)
        torch.autograd.grad(values.log_probs.sum() + values.entropy.sum(), [x, weight])
    assert outlines.peak_bytes - x.nbytes - weight.nbytes <= 64 << 20


def test_many_tiles_lose_nothing_of_a_bfloat16_weights_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a tile, 600 tiles: a sum in bfloat16 stops growing at 256 times a term."""
    monkeypatch.setattr(tiled_head, "tile_shape", lambda tokens, hidden: (1, V))
    hidden, weight = torch.ones(600, 2, dtype=torch.bfloat16), torch.zeros(V, 2, dtype=torch.bfloat16)
    weight.requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    targets = torch.zeros(600, dtype=torch.int64)
    values = tiled_values(hidden, weight, None, targets, TokenRead(), temperature=1.0, banned_token_ids=none)
    (found,) = torch.autograd.grad(values.log_probs.sum(), weight)
    assert found[0, 0].item() == pytest.approx(600 * (1 - 1 / V), rel=5e-3)


def test_a_frozen_head_and_frozen_hidden_states_get_no_gradient() -> None:
    case = Case()
    for frozen, trained in ((case.hidden, case.weight), (case.weight, case.hidden)):
        frozen.requires_grad_(False)
        frozen.grad = trained.grad = None
        case.tiled(TokenRead()).log_probs.sum().backward()
        assert frozen.grad is None and trained.grad is not None
        frozen.requires_grad_()


@pytest.mark.parametrize(("tokens", "hidden"), [(16384, 3584), (16384, 128), (3, 3584), (1, 8192), (16384, 8192)])
def test_a_tile_and_its_sums_stay_within_the_bounds(tokens: int, hidden: int) -> None:
    rows, columns = tiled_head.tile_shape(tokens, hidden)
    assert 1 <= rows <= tokens and columns >= 1
    assert 4 * rows * columns <= tiled_head.TILE_BYTES
    assert 4 * max(rows, columns) * hidden <= tiled_head._SUM_BYTES
