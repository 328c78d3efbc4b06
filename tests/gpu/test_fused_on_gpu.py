"""Attention divergence by Triton at the sizes of training: the same as in plain torch, in little memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ral_system.attention import attention_divergence
from ral_system.attention.divergence import policy_blocks
from tests.gpu.devices import GPU
from tests.gpu.rows import row

pytestmark = GPU

HEADS, KEY_HEADS, DIM = 28, 4, 128
RESULTS = "values", "queries' gradient", "keys' gradient"


def tensors(tokens: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """The last rows of a sequence, and their policies when queries and keys were a little different."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(heads: int) -> Tensor:
        return torch.randn(tokens, heads, DIM, generator=generator, device="cuda")

    query, key = random(HEADS), random(KEY_HEADS)
    options = {"rows": torch.arange(tokens - rows, tokens, device="cuda"), "scale": DIM**-0.5}
    moved = (query + 0.3 * random(HEADS)).to(dtype), (key + 0.3 * random(KEY_HEADS)).to(dtype)
    target = torch.cat(list(policy_blocks(*moved, **options)))
    return options | {
        "query": query.to(dtype).requires_grad_(),
        "key": key.to(dtype).requires_grad_(),
        "target": target,
    }


def results(given: dict[str, Any], backend: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Values, gradients of their mean."""
    found = attention_divergence(**given, backend=backend)
    of_query, of_key = torch.autograd.grad(found.mean(), (given["query"], given["key"]))
    return found.detach(), of_query, of_key


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_agrees_with_chunked_and_with_itself(dtype: torch.dtype, tolerance: float) -> None:
    given = tensors(4096, 256, dtype)
    expected, found, again = (results(given, backend) for backend in ("chunked", "triton", "triton"))
    errors = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, expected, strict=True)]
    row(f"Triton and torch, {dtype}", *(f"{what} {e:.1e}" for what, e in zip(RESULTS, errors, strict=True)))
    assert max(errors) <= tolerance
    assert all(map(torch.equal, found, again))


def test_peak_memory_is_below_half_of_what_one_tensor_of_logits_would_take() -> None:
    tokens, rows = 16384, 768
    given = tensors(tokens, rows, torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(given, "triton")
    peak = torch.cuda.max_memory_allocated() - before
    row(f"divergence of {rows} rows over {tokens:,} keys", f"peak {peak / 2**20:.0f} MiB")
    assert peak <= 600 << 20  # float32 logits: 1344 MiB
