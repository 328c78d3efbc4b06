"""From a question with pictures to the token ids that every engine sees."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ral_system.types import Media, Prompt


class ChatRenderer:
    """Renders conversations with a model's own processor. Media placeholders are expanded here and nowhere else.

    `processor` is a Hugging Face processor with a chat template, an image processor and a tokenizer. An empty
    `system_prompt` sends no system turn.
    """

    def __init__(self, processor: Any, system_prompt: str) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._system_prompt = system_prompt

    def prompt(self, *, id: str, kind: str, question: str, answer: str, media: Sequence[Media]) -> Prompt:
        """System prompt, pictures, question and the opening of the assistant's turn, as one `Prompt`."""
        content = [*({"type": "image"} for _ in media), {"type": "text", "text": question}]
        messages = [*self._system_turn(), {"role": "user", "content": content}]
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pieces = text.split(self._processor.image_token)
        if len(pieces) != len(media) + 1:
            raise ValueError(f"prompt {id}: {len(pieces) - 1} image placeholders for {len(media)} images")
        expanded = pieces[0]
        for image, piece in zip(media, pieces[1:], strict=True):
            expanded += self._processor.image_token * self._visual_tokens(image) + piece
        encoded = self._tokenizer(expanded, add_special_tokens=False, return_offsets_mapping=True)
        begin = expanded.rfind(question)
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < begin + len(question) and b > begin]
        span = (inside[0], inside[-1] + 1) if begin >= 0 and inside else (0, 0)
        return Prompt(id, kind, question, answer, tuple(media), tuple(encoded["input_ids"]), self._system_tokens, span)

    @functools.cached_property
    def _system_tokens(self) -> int:
        if not self._system_prompt:
            return 0
        text = self._processor.apply_chat_template(self._system_turn(), add_generation_prompt=False, tokenize=False)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _system_turn(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []

    def response(self, text: str) -> tuple[int, ...]:
        """Token ids of an assistant turn, its end-of-turn token included.

        Raises ValueError for a word that the tokenizer has no token for, and for the placeholder of a picture.
        """
        if self._processor.image_token in text:
            raise ValueError(f"{self._processor.image_token} stands for a picture, in {text!r}")
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in ids:
            raise ValueError(f"the tokenizer has no token for a word of {text!r}")
        return (*ids, self._tokenizer.eos_token_id)

    def _visual_tokens(self, image: Media) -> int:
        processor = self._processor.image_processor
        patches = processor.get_number_of_image_patches(image.height_px, image.width_px, {})
        return int(patches) // processor.merge_size**2
