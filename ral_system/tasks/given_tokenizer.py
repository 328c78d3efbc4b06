"""A published tokenizer for the tiny model, in place of one of its data's words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ral_system.data.chat import ChatRenderer
from ral_system.errors import SetupError
from ral_system.families.known import family_of
from ral_system.models.folders import check_tokenizer_folder
from ral_system.models.loading import load_family
from ral_system.tasks.tiny_model import CHAT_TEMPLATE, SPECIAL_TOKENS, build_config, build_processor
from ral_system.types import Clip, Media, VideoSampling

FIELD = "model.tiny.tokenizer"
END_OF_TURN = "<|im_end|>"
NEEDED = tuple(token for token in SPECIAL_TOKENS if token != "<|endoftext|>")
"""Special tokens without which Qwen2.5-VL cannot be asked about pictures and videos."""

_PICTURE = Media("0" * 64, 56, 56)
_VIDEO = Media("1" * 64, 56, 56, Clip(VideoSampling(1.0, 2, 2), (0.0, 1.0), 2.0))


def given_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer in the folder `name`, with a chat template that places pictures and videos.

    The template is its own; the tiny model's, with a warning, if it has none or one that does not place them. Its end
    of sequence is `END_OF_TURN` where it names none. Raises SetupError for a folder without a tokenizer, and for a
    tokenizer without the tokens that Qwen2.5-VL needs.
    """
    tokenizer = _load(name)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if missing := [token for token in NEEDED if token not in special]:
        raise SetupError(
            f"{FIELD}={name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not among its special "
            "tokens, and Qwen2.5-VL needs them; give a tokenizer of the Qwen2-VL, Qwen2.5 or Qwen3 family"
        )
    if tokenizer.eos_token is None:
        tokenizer.eos_token = END_OF_TURN
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    elif problem := _template_problem(tokenizer):
        print(
            f"warning: {FIELD}={name}: its chat template cannot render a picture and a video ({problem}); the tiny "
            "model gets its usual one",
            file=sys.stderr,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def is_tokenizer_of(model: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a model's folder holds this tokenizer, with its chat template and its end of sequence."""
    saved = load_family(model).processor
    return _identity(saved.tokenizer, saved.chat_template) == _identity(tokenizer, tokenizer.chat_template)


def _load(name: str) -> PreTrainedTokenizerFast:
    folder = check_tokenizer_folder(FIELD, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of whatever kind: transformers and tokenizers parse the files unchecked
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise SetupError(
            f"{FIELD}={name}: transformers cannot read the tokenizer there ({type(error).__name__}: {first}); copy it "
            "again"
        ) from error
    tokenizer.backend_tokenizer.no_truncation()  # which a published tokenizer.json may ask for
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _template_problem(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Say why the tokenizer's chat template cannot render questions about a picture and a video, if it cannot."""
    config = build_config(tokenizer, hidden=32, layers=1, vision_layers=1)
    family = family_of(config.model_type, FIELD)(config, build_processor(tokenizer, tokenizer.chat_template))
    try:
        renderer = ChatRenderer(family, "")
        renderer.prompt(id="with a picture and a video", kind="", question="What?", answer="", media=[_PICTURE, _VIDEO])
    except (TemplateError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def _identity(tokenizer: PreTrainedTokenizerFast, chat_template: Any) -> tuple[Any, ...]:
    return (tokenizer.backend_tokenizer.to_str(), chat_template, tokenizer.eos_token_id)
