"""Every backend against the dense definition in float64: values, gradients, awkward sizes, awkward rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ral_system.attention import attention_divergence, attention_policy, chunked, fused, row_kernels
from ral_system.attention.divergence import policy_blocks
from ral_system.attention.window import Window
from ral_system.registry import DIVERGENCES

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # Triton's interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["chunked", "triton"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass
class Case:
    tokens: int
    heads: int
    key_heads: int
    dim: int
    rows: list[int]
    segments: list[int] | None = None
    """Lengths of packed sequences."""
    key_mask: list[int] | None = None
    """Keys that count, by position modulo 7."""
    sharpness: float = 1.0
    mode: str = "mean"
    window: int | None = None

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.tokens * 1000 + self.heads * 10 + self.dim)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        branches = None
        if self.segments is not None:
            branches = torch.repeat_interleave(torch.arange(len(self.segments)), torch.tensor(self.segments))
        key_mask = None
        if self.key_mask is not None:
            key_mask = torch.tensor([t % 7 in self.key_mask for t in range(self.tokens)])
        window = None
        if self.window is not None:
            prompt, *others = self.segments or [self.tokens]
            own = [torch.arange(prompt), *(torch.arange(length) + prompt for length in others)]
            window = Window(self.window, torch.cat(own).to(DEVICE))
        query = random(self.tokens, self.heads, self.dim) * self.sharpness
        return {
            "query": query.to(DEVICE, dtype).requires_grad_(),
            "key": random(self.tokens, self.key_heads, self.dim).to(DEVICE, dtype).requires_grad_(),
            "rows": torch.tensor(self.rows, dtype=torch.int64, device=DEVICE),
            "scale": self.dim**-0.5,
            "branches": None if branches is None else branches.to(DEVICE),
            "key_mask": None if key_mask is None else key_mask.to(DEVICE),
            "heads": self.mode,
            "window": window,
        }

    def target(self) -> Tensor:
        """The policy of a model a little different, float64."""
        moved = self.tensors()
        generator = torch.Generator().manual_seed(1)
        for name in ("query", "key"):
            move = torch.randn(moved[name].shape, generator=generator, dtype=torch.float64)
            moved[name] = moved[name].detach() + 0.3 * move.to(DEVICE)
        return attention_policy(**moved)


CASES = {
    "one token": Case(1, 1, 1, 8, [0]),
    "one key": Case(2, 2, 1, 32, [1]),
    "one row": Case(37, 4, 2, 32, [36]),
    "no row": Case(5, 2, 2, 16, []),
    "primes": Case(97, 7, 1, 61, list(range(41, 97, 5))),
    "any order, repeated": Case(64, 4, 4, 64, [63, 2, 2, 0, 31, 63]),
    "eight heads on a key": Case(53, 8, 1, 128, list(range(20, 53))),
    "wide": Case(29, 2, 1, 256, list(range(10, 29))),
    "packed": Case(61, 4, 2, 32, [0, 3, 19, 20, 21, 40, 60], segments=[20, 1, 33, 7]),
    "masked": Case(61, 4, 2, 32, [0, 1, 9, 30, 60], key_mask=[0, 3]),
    "packed and masked": Case(61, 4, 2, 32, [0, 5, 19, 20, 22, 60], segments=[20, 1, 33, 7], key_mask=[1, 5]),
    "all rows masked": Case(23, 4, 2, 32, [0, 5, 22], key_mask=[]),
    "each head": Case(61, 4, 2, 32, [0, 1, 30, 60], mode="each"),
    "each head, packed and masked": Case(61, 4, 2, 32, [0, 5, 22, 60], [20, 1, 33, 7], [1, 5], mode="each"),
    "several tiles of rows and keys": Case(139, 2, 1, 16, list(range(138, 68, -1)), key_mask=[0, 1, 2]),
    "window": Case(61, 4, 2, 32, [0, 3, 20, 40, 60], window=7),
    "window, packed and masked": Case(61, 4, 2, 32, [0, 5, 19, 20, 22, 53, 60], [20, 1, 33, 7], [1, 5], window=9),
    "window of the row alone": Case(23, 4, 2, 32, [0, 5, 22], window=1),
    "each head, window": Case(61, 4, 2, 32, [0, 5, 22, 60], [20, 1, 33, 7], mode="each", window=9),
    "sharp": Case(43, 4, 2, 32, list(range(0, 43, 3)), sharpness=12.0),
}


TRITON_ALWAYS = (
    "one token",
    "no row",
    "any order, repeated",
    "packed and masked",
    "window, packed and masked",
    "each head, window",
    "each head, packed and masked",
    "wide",
)


def _kinds(*backends: str) -> list[Any]:
    """Every kind of divergence with every backend. Kinds share Triton's kernels, which are slow in its interpreter: all
    but one are long there.
    """
    return [
        pytest.param(backend, kind, marks=pytest.mark.long if (backend, kind != "jsd") == ("triton", True) else ())
        for backend in backends
        for kind in DIVERGENCES.names
    ]


def _combinations() -> Iterator[Any]:
    """Blocks, backends, kinds and cases; most of Triton's are long."""
    for blocks in ("many_blocks", "one_block"):
        for name in CASES:
            yield from (pytest.param(blocks, "chunked", kind, name) for kind in DIVERGENCES.names)
            quick = name == "packed and masked" if blocks == "many_blocks" else name in TRITON_ALWAYS
            yield pytest.param(blocks, "triton", "jsd", name, marks=() if quick else pytest.mark.long)


def run(
    case: Case, target: Tensor, dtype: torch.dtype, *, upcast: bool = False, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, and gradients of a sum of the rows weighted with both signs. `upcast`: exactly, on what `dtype` holds."""
    tensors = case.tensors(dtype)
    if upcast:
        tensors |= {name: tensors[name].detach().double().requires_grad_() for name in ("query", "key")}
    found = attention_divergence(**tensors, target=target, **options)
    weights = torch.linspace(-1, 2, len(case.rows), dtype=found.dtype, device=DEVICE)
    (found * weights).sum().backward()
    return found.detach(), tensors["query"].grad, tensors["key"].grad


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm."""
    scale = expected.double().norm().item()
    return (found.double() - expected.double()).norm().item() / (scale if scale > 0 else 1.0)


TILES = fused.launch_options


@pytest.fixture(autouse=True)
def coarse_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by the number of tiles, and it has no shared memory to fill."""
    if DEVICE == "cpu":
        coarse = {"BLOCK_R": 64, "BLOCK_S": 64}
        monkeypatch.setattr(fused, "launch_options", lambda dim, dtype: TILES(dim, dtype) | coarse)


@pytest.fixture(params=["many_blocks", "one_block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked._BLOCK_BYTES, DEVICE, 8 << 20)
    if request.param == "many_blocks":
        monkeypatch.setitem(chunked._BLOCK_BYTES, DEVICE, 1 << 10)
        monkeypatch.setattr(fused.FusedKernels, "rows_per_block", lambda self, query_heads: 23)
        monkeypatch.setattr(fused, "SPAN", 64)
        monkeypatch.setattr(fused, "launch_options", TILES)


@pytest.mark.parametrize(("blocks", "backend", "kind", "name"), [*_combinations()], indirect=["blocks"])
def test_agrees_with_the_definition_in_float64(blocks: None, backend: str, kind: str, name: str) -> None:
    case = CASES[name]
    for dtype, tolerance in TOLERANCE.items():
        if (backend, dtype) == ("triton", torch.float64):
            continue
        target = case.target().to(dtype)
        expected = run(case, target, dtype, upcast=True, kind=kind, backend="dense")
        found = run(case, target, dtype, kind=kind, backend=backend)
        for part, a, b in zip(("value", "query", "key"), found, expected, strict=True):
            assert a.dtype == (dtype if part != "value" or dtype == torch.float64 else torch.float32)
            assert error(a, b) <= tolerance, (dtype, part)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["primes", "packed and masked", "each head"])
def test_gradients_against_finite_differences(name: str) -> None:
    case, small = CASES[name], [0, 2, 9, 12]
    case = Case(13, case.heads, case.key_heads, 3, small, case.segments and [4, 1, 8], case.key_mask, mode=case.mode)
    tensors, target = case.tensors(), case.target()
    query, key = tensors.pop("query"), tensors.pop("key")

    def divergences(query: Tensor, key: Tensor) -> Tensor:
        return attention_divergence(query, key, **tensors, target=target, backend="chunked")

    assert torch.autograd.gradcheck(divergences, (query, key))


def test_float16_holds_gradients_as_small_as_a_loss_scale_makes_them() -> None:
    case = CASES["packed and masked"]
    tensors, grow = case.tensors(torch.float16), 4096.0
    target = case.target().half()
    tensors["scale"] *= grow  # makes the gradient in query large enough for float16, not that in the logits
    tensors["query"] = (tensors["query"].detach() / grow).requires_grad_()
    exact = tensors | {name: tensors[name].detach().double().requires_grad_() for name in ("query", "key")}
    for given, backend in ((tensors, "triton"), (exact, "dense")):
        (attention_divergence(**given, target=target, backend=backend).sum() * 2**-18).backward()
    assert error(tensors["query"].grad, exact["query"].grad) <= 1e-2


def test_rows_have_the_same_bits_in_every_call_and_nearly_in_every_company() -> None:
    case = Case(149, 4, 2, 32, list(range(80, 149)))
    tensors = case.tensors(torch.float32)
    query, key, rows = tensors["query"].detach(), tensors["key"].detach(), tensors["rows"]
    found, again = (torch.cat(list(policy_blocks(query, key, rows, scale=0.2, backend="triton"))) for _ in range(2))
    assert torch.equal(found, again)
    (alone,) = policy_blocks(query, key, rows[40:41], scale=0.2, backend="triton")
    assert torch.allclose(alone[0], found[40], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("backend", "kind"), _kinds("dense", *BACKENDS))
@pytest.mark.parametrize("sharpness", [1e2, 1e30])
def test_stays_finite_however_peaked_a_row_is(backend: str, kind: str, sharpness: float) -> None:
    for mode, mask in (("mean", None), ("mean", [2]), ("each", [2])):
        case = Case(41, 4, 2, 32, [0, 1, 17, 40], key_mask=mask, sharpness=sharpness, mode=mode)
        target = torch.zeros(4, 41, device=DEVICE)
        target[:, 2] = 1.0
        if mode == "each":
            target = target.expand(4, 4, 41)
        for part in run(case, target, torch.float32, kind=kind, backend=backend):
            assert part.isfinite().all()


@pytest.mark.parametrize(("blocks", "backend", "kind", "name"), [*_combinations()], indirect=["blocks"])
def test_is_exactly_zero_at_a_target_of_its_own_making(blocks: None, backend: str, kind: str, name: str) -> None:
    case = CASES[name]
    tensors = {k: v.detach() if isinstance(v, Tensor) else v for k, v in case.tensors(torch.float32).items()}
    blocks = list(policy_blocks(**tensors, backend=backend))
    target = torch.cat(blocks, dim=-2) if case.rows else case.target().float()
    for part in run(case, target, torch.float32, kind=kind, backend=backend):
        assert not part.any()


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_logits_beyond_float32_are_not_hidden_behind_a_zero(backend: str) -> None:
    case = Case(9, 1, 1, 16, [8], sharpness=1e39)
    target = case.target().float()
    with torch.no_grad():
        tensors = case.tensors(torch.float64) | {
            "key": torch.full((9, 1, 16), 1e30),
            "query": torch.full((9, 1, 16), 1e30),
        }
        found = attention_divergence(**tensors, target=target.nan_to_num(0), backend=backend)
    assert not found.isfinite().any()


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor made in the block."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("kind", DIVERGENCES.names)
def test_no_tensor_is_as_large_as_rows_times_keys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked._BLOCK_BYTES, DEVICE, 1 << 16)
    case = Case(512, 4, 2, 8, list(range(256, 512)))
    target = case.target().float()
    with LargestTensor() as largest:
        run(case, target, torch.float32, kind=kind, backend="chunked")
    assert largest.bytes <= 1 << 17
    with LargestTensor() as largest:
        run(case, target, torch.float32, kind=kind, backend="dense")
    assert largest.bytes >= 4 * 256 * 512 * 4


def test_triton_makes_no_tensor_with_an_entry_per_head_row_and_key() -> None:
    case = Case(512, 4, 2, 4, list(range(480, 512)))
    target = case.target().float()
    with LargestTensor() as largest:
        run(case, target, torch.float32, backend="triton")
    assert largest.bytes <= 32 * 512 * 4


GOOD = {"query": torch.zeros(4, 2, 8), "key": torch.zeros(4, 1, 8), "rows": torch.tensor([1, 3]), "scale": 1.0}
TARGET = torch.full((2, 4), 0.25)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"target": torch.zeros(2, 5)}, r"target must be floating \[R, T\] = \(2, 4\), got torch.float32 \(2, 5\)"),
        ({"target": torch.zeros(2, 4).long()}, r"target must be floating .* got torch.int64 \(2, 4\)"),
        ({"target": TARGET, "heads": "each"}, r"target must be floating \[H, R, T\] = \(2, 2, 4\), got"),
        ({"target": TARGET - 0.5}, r"target must be probabilities ≥ 0, got -0.25 at \[0, 0\] of \(2, 4\)"),
        ({"target": TARGET / 0}, r"target must be probabilities ≥ 0, got inf"),
        ({"target": TARGET * float("nan")}, r"target must be probabilities ≥ 0, got nan"),
        ({"target": TARGET.to("meta")}, r"target \(\d+, \d+\) must be on the device of query and key, cpu, got meta"),
        (
            {"key": GOOD["key"].bfloat16()},
            r"query and key must share a floating dtype, got torch.float32 \(4, 2, 8\) and torch.bfloat16",
        ),
        ({"key": GOOD["key"].to("meta")}, r"key \(.*\) must be on the device of query \(.*\), cpu, got meta"),
        ({"branches": torch.zeros(3).long()}, r"branches must be int64 \[T\] like query \(4, 2, 8\), .* \(3,\)"),
        ({"key_mask": torch.zeros(4)}, r"key_mask must be bool \[T\] like query \(4, 2, 8\), got torch.float32 \(4,\)"),
        ({"rows": torch.tensor([1, 4])}, r"rows \(2,\) must lie in 0..3 of query \(4, 2, 8\), got 1..4"),
        ({"target": TARGET * 5}, r"target must be probabilities, but a row of \(2, 4\) adds up to 5"),
        ({"target": None}, r"target must be a Tensor \[R, T\] = \(.*\) or an AttentionRecord, got NoneType"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"query": GOOD["query"].long(), "key": GOOD["key"].long()}, "must share a floating dtype, got torch.int64"),
        ({"heads": "max"}, "heads='max'; known: mean, each"),
        ({"kind": "kl"}, "kind='kl'; known: jsd, forward_kl"),
        ({"backend": "flash"}, "backend='flash'; known: auto, dense, chunked"),
    ],
)
def test_errors_name_the_argument_and_both_shapes(change: dict[str, Any], complaint: str) -> None:
    attention_divergence(**GOOD, target=TARGET)
    with pytest.raises(ValueError, match=complaint):
        attention_divergence(**(GOOD | {"target": TARGET} | change))


def test_triton_refuses_what_it_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(**change: Any) -> Tensor:
        return attention_divergence(**(GOOD | change), target=TARGET, backend="triton")

    with pytest.raises(ValueError, match=r"backend='triton' has no float64 .*; use backend='chunked' or 'dense'"):
        call(query=GOOD["query"].double(), key=GOOD["key"].double())
    with pytest.raises(ValueError, match=r"no heads wider than 256, got torch.float32 \[T, K, 257\]; use backend="):
        call(query=torch.zeros(4, 2, 257), key=torch.zeros(4, 1, 257))
    monkeypatch.setattr(fused.kernels, "INTERPRETED", SimpleNamespace(value=False))
    with pytest.raises(ValueError, match="backend='triton' needs CUDA tensors, got cpu; use backend='chunked'"):
        call()
    monkeypatch.setattr(row_kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend='triton' needs the package triton; install it or use"):
        call()


@pytest.mark.parametrize(("backend", "kind"), _kinds("dense", *BACKENDS))
def test_a_row_without_a_key_has_no_divergence_whatever_its_target(backend: str, kind: str) -> None:
    case = Case(9, 2, 1, 16, [0, 4])
    tensors = case.tensors(torch.float32)
    found = attention_divergence(**tensors, target=torch.full((2, 9), 1 / 9), kind=kind, backend=backend)
    assert found[0] == 0 < found[1]
    found.sum().backward()
    assert tensors["query"].grad[0].abs().max() == 0


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_strided_arguments_are_read_as_they_are(backend: str) -> None:
    case = Case(40, 4, 2, 32, list(range(0, 40, 3)), segments=[20, 20], key_mask=[0, 2, 3])
    plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in case.tensors(torch.float32).items()}
    strided = plain | {
        "rows": torch.arange(40)[::3],
        "branches": plain["branches"].repeat_interleave(2)[::2],
        "key_mask": plain["key_mask"].repeat_interleave(2)[::2],
        "query": plain["query"].transpose(0, 1).contiguous().transpose(0, 1),
    }
    assert not strided["rows"].is_contiguous() and not strided["key_mask"].is_contiguous()
    target = case.target().float()
    expected, found = (attention_divergence(**t, target=target, backend=backend) for t in (plain, strided))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_autocast_does_not_reach_inside(backend: str) -> None:
    case = CASES["primes"]
    target = case.target().float()
    expected = run(case, target, torch.float32, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(case, target, torch.float32, backend=backend)
        tensors = {k: v.detach() if isinstance(v, Tensor) else v for k, v in case.tensors(torch.float32).items()}
        assert attention_policy(**tensors).dtype == torch.float32
        own = torch.cat(list(policy_blocks(**tensors)))
        assert not attention_divergence(**tensors, target=own, backend="chunked").any()
    assert torch.equal(found[0], expected[0])
    if backend == "chunked":  # the definition's backward pass is autograd's own, which autocast reaches
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
