"""A tiny Qwen2.5-VL of random weights with a tokenizer and a chat template as models have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from ral_system.families.qwen_vl.family import QwenVl
from ral_system.tasks.tiny_model import build_config, build_processor
from ral_system.types import Completion, FinishReason

VOCABULARY = 151_936
"""Rows of the embedding, as published: 271 more than the tokenizer has tokens."""
END_OF_TURN, END_OF_TEXT = 151_645, 151_643


def real_family(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> QwenVl:
    """Return the family of a model with this tokenizer and template, without the model."""
    return QwenVl(_config(tokenizer), build_processor(tokenizer, chat_template))


def build_real_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str,
    *,
    hidden: int = 32,
    logits: Mapping[int, float] | None = None,
) -> None:
    """Write the model, with both ends of a sequence that Qwen's generation_config.json names.

    With `logits` it gives these tokens these logits, whatever it has read, and all others -1000.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer, hidden)).float()
    if logits is not None:
        _fix(model, logits)
    model.generation_config.eos_token_id = [END_OF_TURN, END_OF_TEXT]
    model.generation_config.pad_token_id = END_OF_TEXT
    model.save_pretrained(folder)
    build_processor(tokenizer, chat_template).save_pretrained(folder)


def _config(tokenizer: PreTrainedTokenizerFast, hidden: int = 32) -> Any:
    config = build_config(tokenizer, hidden=hidden, layers=2, vision_layers=1)
    config.text_config.vocab_size = VOCABULARY
    return config


@torch.no_grad()
def _fix(model: Any, logits: Mapping[int, float]) -> None:
    """Every text token's hidden state becomes a vector of ones: no layer adds anything to the embedding of ones."""
    text = model.model.language_model
    text.embed_tokens.weight.fill_(1.0)
    for layer in text.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    hidden = model.lm_head.in_features
    model.lm_head.weight.fill_(-1000.0 / hidden)
    for token, logit in logits.items():
        model.lm_head.weight[token] = logit / hidden


SAID = ("</", "answer", ">", ">B", "</answer>")
"""Parts of a tag, one with the start of the next text; the whole tag, where the tokenizer has a token for it."""
BEYOND = VOCABULARY - 1
"""A token of the model that its tokenizer does not have."""


def ending_logits(tokenizer: PreTrainedTokenizerFast) -> dict[int, float]:
    """Logits of what is `SAID`, of both ends of a sequence, and of a token that is not text."""
    return dict.fromkeys(_said(tokenizer), 1.0) | dict.fromkeys([END_OF_TURN, END_OF_TEXT, BEYOND], 0.0)


def _said(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    tokens = {text: tokenizer(text)["input_ids"] for text in SAID}
    return {ids[0]: text for text, ids in tokens.items() if len(ids) == 1}


def check_endings(completions: Sequence[Completion], tokenizer: PreTrainedTokenizerFast, *, at_answer: bool) -> None:
    """Check that each response of a model of `ending_logits` ends where it should, and is the text of its tokens."""
    texts, logits, ended_by = _said(tokenizer), ending_logits(tokenizer), set()
    log_sum = math.log(sum(map(math.exp, logits.values())))
    for completion in completions:
        *before, last = completion.token_ids
        said = "".join(texts.get(token, "") for token in completion.token_ids)
        answered = at_answer and "</answer>" in said
        assert completion.text == said
        expected = [logits[token] - log_sum for token in completion.token_ids]
        assert completion.log_probs == pytest.approx(expected, abs=1e-4)
        assert not {END_OF_TURN, END_OF_TEXT} & {*before}
        assert not at_answer or "</answer>" not in "".join(texts.get(token, "") for token in before)
        stopped = answered or last in (END_OF_TURN, END_OF_TEXT)
        assert completion.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        ended_by.add(texts[last] if answered else last if stopped else "limit")
    answers = {">", ">B", *({"</answer>"} & {*texts.values()})} if at_answer else set()
    assert ended_by == {END_OF_TURN, END_OF_TEXT, "limit"} | answers
    assert any(c.text == "" for c in completions) and any(len(c.token_ids) == 1 for c in completions)
    assert any(BEYOND in c.token_ids for c in completions)
