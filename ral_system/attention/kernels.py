"""The attention of packed groups: one implementation for each kernel that a machine may have.

All give the same: query [1, H, T, D], key and value [1, K, T, D] of a stream become [1, T, H, D]; a response attends to
its prompt and itself. Pictures whose tokens attend in both directions, and sliding windows, need masks, which only sdpa
takes. Suffixes: T tokens, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.window import Window
from ral_system.device_kind import device_kind
from ral_system.errors import SetupError

MASKED_TOKENS = 512
"""A group of up to so many tokens is one call with a mask; in longer ones too much of such a mask would be empty."""

Kernel = Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]
"""(query, key, value, packing, scale) → attention."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""(query [·, H, D], key and value [·, K, D], their cumulative lengths, their largest lengths) → attention of sequences
that follow one another; if causal, from the last token back."""


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, window: int | None = None
) -> Tensor:
    """Attention of packed groups, by the fastest kernel for these tensors. With `window` a token sees that many, itself
    and those before it in its own sequence.
    """
    if window is not None and window >= max(group.longest for group in packing.groups):
        window = None
    if window is not None or any(group.pictures for group in packing.groups):
        return sdpa(query, key, value, packing, scale, window=window)
    return KERNELS[kernel_for(query.device, query.dtype)](query, key, value, packing, scale)


def segment_attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float) -> Tensor:
    """Attention in both directions within segments, as a vision encoder's windows have it, in as few calls as there are
    runs of equal segments, or one. `ends` int32 are their cumulative lengths, from 0 on.
    """
    kernel = kernel_for(query.device, query.dtype)
    if kernel == "sdpa":
        return sdpa(query, key, value, Packing.apart(tuple(ends.diff().tolist())), scale, causal=False)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _VARLEN[kernel](scale, causal=False)(q, k, v, ends, ends, longest, longest)[None]


def kernel_for(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that runs there: flash_attn where it is installed, else torch's varlen, else sdpa.

    The first two are for CUDA devices and 16 bits.
    """
    if device_kind(device) != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    return "flash_attn" if flash_attention() else "varlen"


@cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's kernel for sequences of unequal length (arXiv 2307.08691); None where it is not installed.

    Raises SetupError where it is installed and does not import, as after another version of torch was installed.
    """
    if find_spec("flash_attn") is None:
        return None
    try:
        return cast(Callable[..., Tensor], importlib.import_module("flash_attn").flash_attn_varlen_func)
    except (ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(
            f"flash-attn is installed and does not import ({reason}): reinstall it for this version of torch, or "
            "uninstall it to use torch's varlen attention"
        ) from error


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scale: float,
    *,
    causal: bool = True,
    window: int | None = None,
) -> Tensor:
    """torch's scaled_dot_product_attention, a call for each run of equal groups, or for each response of a long one.

    Groups of one may attend in both directions, without `causal`.
    """
    sizes = [group.tokens * count for group, count in packing.runs]
    found = []
    parts = zip(*(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True)
    for (group, count), part in zip(packing.runs, parts, strict=True):
        # [count, heads, tokens, D], without a copy
        q, k, v = (t.unflatten(1, (count, group.tokens)).transpose(0, 1) for t in part)
        own = None if window is None or window >= group.longest else window
        if len(group.responses) == 1 and own is None and not group.pictures:
            of_run = _sdpa(q, k, v, None, scale, causal=causal)
        elif group.tokens <= MASKED_TOKENS or not group.prompt:
            of_run = _sdpa(q, k, v, _group_mask(group, own, q.device, q.dtype), scale)
        else:
            of_run = _prompt_and_responses(q, k, v, group, own, scale)
        found.append(of_run.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)[None]


def _flash_attn(scale: float, *, causal: bool) -> Attend:
    """flash-attn's kernel."""
    attention = flash_attention()
    assert attention is not None

    def attend(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int) -> Tensor:
        return attention(q, k, v, ends_q, ends_k, most_q, most_k, softmax_scale=scale, causal=causal)

    return attend


def _varlen_attn(scale: float, *, causal: bool) -> Attend:
    """torch's own kernel for sequences of unequal length."""
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)

    def attend(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int) -> Tensor:
        found = varlen_attn(q, k, v, ends_q, ends_k, most_q, most_k, scale=scale, window_size=window, enable_gqa=True)
        return cast(Tensor, found)

    return attend


_VARLEN = {"flash_attn": _flash_attn, "varlen": _varlen_attn}


def flash_attn(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """One or two calls of flash-attn."""
    return _varlen(query, key, value, packing, _flash_attn(scale, causal=True))


def varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """One or two calls of torch's kernel for sequences of unequal length."""
    return _varlen(query, key, value, packing, _varlen_attn(scale, causal=True))


KERNELS: dict[str, Kernel] = {"flash_attn": flash_attn, "varlen": varlen, "sdpa": sdpa}


def in_words(kernel: str, *, pictures: bool, windows: bool) -> str:
    """Name a kernel, and what needs masks instead: pictures whose tokens attend in both directions, or windows."""
    masked = [what for what, there in (("pictures", pictures), ("sliding windows", windows)) if there]
    if kernel == "sdpa" or not masked:
        return TITLES[kernel]
    return f"{TITLES[kernel]}; for {' and '.join(masked)} {TITLES['sdpa']} with masks"


TITLES = {
    "flash_attn": "flash-attn",
    "varlen": "torch's varlen attention",
    "sdpa": "torch's scaled_dot_product_attention",
}


def _varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, attend: Attend) -> Tensor:
    """One call for all prompts, and one for all responses over copies of [prompt, response].

    Groups of one are sequences as they are: a single call.
    """
    q_THD, k_TKD, v_TKD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    calls = _calls(packing, query.device)
    found = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    for at_q, at_k, ends_q, ends_k, most_q, most_k in calls:
        if at_q is None:
            return attend(q_THD, k_TKD, v_TKD, ends_q, ends_k, most_q, most_k)[None]
        part = attend(q_THD[at_q], k_TKD[at_k], v_TKD[at_k], ends_q, ends_k, most_q, most_k)
        found = found.index_copy(0, at_q, part)
    return found[None]


_Call = tuple[Tensor | None, Tensor | None, Tensor, Tensor, int, int]


@lru_cache(maxsize=8)
def _calls(packing: Packing, device: torch.device) -> list[_Call]:
    """List which tokens of the stream each call takes as queries and keys (None: all), and where its sequences end."""
    if all(len(group.responses) == 1 for group in packing.groups):
        ends = _ends(list(packing.lengths), device)
        return [(None, None, ends, ends, max(packing.lengths), max(packing.lengths))]
    prompts, responses, sequences, at = [], [], [], 0
    for group in packing.groups:
        prompt = torch.arange(at, at + group.prompt)
        prompts.append(prompt)
        for start, length in zip(group.starts, group.responses, strict=True):
            responses.append(torch.arange(at + start, at + start + length))
            sequences.append(torch.cat([prompt, responses[-1]]))
        at += group.tokens
    calls: list[_Call] = []
    for queries, keys in ((prompts, prompts), (responses, sequences)):
        lengths_q, lengths_k = [len(q) for q in queries], [len(k) for k in keys]
        at_q, at_k = torch.cat(queries).to(device), torch.cat(keys).to(device)
        ends_q, ends_k = _ends(lengths_q, device), _ends(lengths_k, device)
        calls.append((at_q, at_k, ends_q, ends_k, max(lengths_q), max(lengths_k)))
    return calls


def _ends(lengths: list[int], device: torch.device) -> Tensor:
    """Cumulative lengths from 0 on, int32."""
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *, causal: bool = True
) -> Tensor:
    """[B, H, ·, D]; a mask takes the place of `causal`."""
    causal = causal and mask is None
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # short sequences take longer in 16 bits there
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.float(), key.float(), value.float()
            return _sdpa(query, key, value, None if mask is None else mask.float(), scale, causal=causal)
    if query.device.type == "meta":  # whose own attention holds all weights, as no other device's does
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return cast(Tensor, fused(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)[0])
    if mask is not None and query.is_cuda:  # no fast kernel there takes a mask and shared key heads
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=key.shape[1] < query.shape[1],
    )


def whole_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of all tokens to all, as in pictures: [B, T, H, D] from [B, H, T, D]."""
    return _sdpa(query, key, value, None, scale, causal=False).transpose(1, 2)


def _prompt_and_responses(
    query: Tensor, key: Tensor, value: Tensor, group: PackedGroup, window: int | None, scale: float
) -> Tensor:
    sizes = (group.prompt, *group.responses)
    q, *queries = query.split(sizes, dim=2)
    k, *keys = key.split(sizes, dim=2)
    v, *values = value.split(sizes, dim=2)
    own = None
    if window is not None or group.pictures:
        own = _prompt_mask(group.prompt, group.pictures, window, q.device, q.dtype)
    found = [_sdpa(q, k, v, own, scale)]
    for q_own, k_own, v_own in zip(queries, keys, values, strict=True):
        mask = _response_mask(group.prompt, q_own.shape[2], window, q.device, q.dtype)
        found.append(_sdpa(q_own, torch.cat([k, k_own], dim=2), torch.cat([v, v_own], dim=2), mask, scale))
    return torch.cat(found, dim=2)


def _mask(group: PackedGroup, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """0 where a token of the group (row) attends to one (column), -inf elsewhere: [T, T].

    A window also holds within pictures: a token sees what comes after it in its own.
    """
    branches, at, picture = group.branches, torch.arange(group.tokens), group.picture_of
    seen = (at <= at[:, None]) | ((picture > 0) & (picture == picture[:, None]))
    if branches is not None:
        seen &= (branches == 0) | (branches == branches[:, None])
    if window is not None:
        seen &= Window(window, group.positions).reaches(at)
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).to(device, dtype)


_group_mask = lru_cache(maxsize=64)(_mask)


@lru_cache(maxsize=8)
def _prompt_mask(
    prompt: int, pictures: tuple[tuple[int, int], ...], window: int | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Mask of a prompt alone: [prompt, prompt]. Few are kept, because they are large."""
    return _mask(PackedGroup(prompt, (0,), pictures), window, device, dtype)


@lru_cache(maxsize=8)
def _response_mask(prompt: int, response: int, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Mask of the tokens of a response over prompt and response: [response, prompt + response]."""
    hidden = torch.ones(response, prompt + response, dtype=torch.bool).triu(prompt + 1)
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(prompt - window)
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")).to(device, dtype)
