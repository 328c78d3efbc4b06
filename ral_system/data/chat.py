"""From a question with media to the token ids that every engine sees."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from ral_system.families.family import Family
from ral_system.types import MARKS, Media, Prompt, Region

_MARK = re.compile("(" + "|".join(MARKS) + ")")
_STAND_IN = "\ue000"
"""Replaces a piece of text while the chat template is filled in, so that no text can look like a placeholder."""


class ChatRenderer:
    """Renders conversations with a model's own chat template. Media placeholders are expanded here and nowhere else.

    An empty `system_prompt` sends no system turn.
    """

    def __init__(self, family: Family, system_prompt: str) -> None:
        self.family = family
        self._processor, self._tokenizer = family.processor, family.tokenizer
        self._system_prompt = system_prompt

    def prompt(
        self,
        *,
        id: str,
        kind: str,
        question: str,
        answer: str,
        media: Sequence[Media],
        evidence: Sequence[Region] = (),
    ) -> Prompt:
        """Render system prompt, question with media, and the opening of the assistant's turn as one `Prompt`.

        Media stand at the question's marks (`types.MARKS`), or before it where it has none. Raises ValueError where
        marks and media differ, for evidence that does not fit the media, and for text that holds one of the tokenizer's
        special tokens.
        """
        around_marks = _MARK.split(question)[::2]  # a mark may be a special token of the model
        if special := next((t for t in self._special_tokens if any(t in text for text in around_marks)), None):
            raise ValueError(f"prompt {id}: the text holds {special}, which has a special meaning to the model")
        for kind_of, most in self.family.max_media.items():
            if (count := sum(medium.kind == kind_of for medium in media)) > most:
                raise ValueError(f"prompt {id}: {count} {kind_of}s; at most {most} are supported")
        pieces = _MARK.split(question)
        if len(pieces) == 1:
            pieces = [*(f"<{medium.kind}>" for medium in media), *pieces]
        elif [MARKS[mark] for mark in pieces[1::2]] != [medium.kind for medium in media]:
            raise ValueError(f"prompt {id}: marks {pieces[1::2]} for {[medium.kind for medium in media]}")
        texts = [piece for piece in pieces if piece not in MARKS and piece]
        content = [
            {"type": MARKS[piece]} if piece in MARKS else {"type": "text", "text": _STAND_IN}
            for piece in pieces
            if piece
        ]
        messages = [*self._system_turn(), {"role": "user", "content": content}]
        rendered = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        unexpanded, expanded, spans = self._filled(rendered, texts, media)
        encoded = self._tokenizer(expanded, add_special_tokens=False, return_offsets_mapping=True)
        if problem := self.family.problem(encoded["input_ids"], media):
            raise ValueError(f"prompt {id} {problem}; the chat template and the processor do not fit each other")
        in_text = _inside(spans, encoded["offset_mapping"])
        token_ids = tuple(encoded["input_ids"])
        engine_ids = tuple(self._tokenizer(unexpanded, add_special_tokens=False)["input_ids"])
        return Prompt(
            id,
            kind,
            question,
            answer,
            tuple(media),
            token_ids,
            engine_token_ids=engine_ids,
            system_tokens=self._system_tokens,
            question_positions=in_text,
            evidence=tuple(evidence),
        )

    def _filled(
        self, rendered: str, texts: Sequence[str], media: Sequence[Media]
    ) -> tuple[str, str, list[tuple[int, int]]]:
        """The text with a placeholder for each medium; the text with the media expanded; in that, the first and end
        character of each piece of the question.
        """
        placeholders = tuple(self.family.placeholders.values())
        next_text, next_medium = iter(texts), iter(media)
        unexpanded, expanded, spans = "", "", []
        for part in re.split(f"({'|'.join(map(re.escape, placeholders))}|{_STAND_IN})", rendered):
            if part in placeholders:
                unexpanded += part
                expanded += self.family.expanded(next(next_medium))
            elif part == _STAND_IN:
                text = next(next_text)
                if text.strip():
                    spans.append((len(expanded), len(expanded) + len(text)))
                unexpanded += text
                expanded += text
            else:
                unexpanded += part
                expanded += part
        return unexpanded, expanded, spans

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        added = self._tokenizer.added_tokens_decoder.values()
        return tuple({*self._tokenizer.all_special_tokens, *(t.content for t in added if t.special), _STAND_IN})

    @functools.cached_property
    def _system_tokens(self) -> int:
        """Tokens before the user's turn, whether `system_prompt` or the chat template itself put them there.

        Special tokens alone, such as a beginning of sequence, do not make a turn.
        """
        ids = self._tokenizer(self._before_the_user(), add_special_tokens=False)["input_ids"]
        return len(ids) if self._tokenizer.decode(ids, skip_special_tokens=True).strip() else 0

    def _before_the_user(self) -> str:
        """Return what the template renders before the first user turn but not before a later one."""
        system, asked, said = self._system_turn(), _turn("user"), _turn("assistant")
        before, *_ = self._around_stand_ins([*system, asked])
        *_, ends_assistant = self._around_stand_ins([*system, asked, said])
        *_, between, _ = self._around_stand_ins([*system, asked, said, asked])
        header = between.removeprefix(ends_assistant).strip()
        return before[: max(0, before.rfind(header))]

    def _around_stand_ins(self, messages: Sequence[dict[str, Any]]) -> list[str]:
        """Return the template's own text around the messages' contents."""
        rendered = self._processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        return rendered.split(_STAND_IN)

    def _system_turn(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []

    def check(self, text: str) -> None:
        """Raise ValueError if a response's text holds one of the tokenizer's special tokens."""
        if special := next((token for token in self._special_tokens if token in text), None):
            raise ValueError(f"the text {text!r} holds {special}, which has a special meaning to the model")

    def response(self, text: str) -> tuple[int, ...]:
        """Return the token ids of an assistant turn, including its end-of-turn token.

        Raises ValueError for a word that the tokenizer has no token for, and for text that holds a special token.
        """
        self.check(text)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in ids:
            raise ValueError(f"the tokenizer has no token for a word of {text!r}")
        return (*ids, self._tokenizer.eos_token_id)


def _turn(role: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": _STAND_IN}]}


def _inside(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Indices of the tokens that hold a character of any of `spans`; `offsets` are each token's first and end one."""
    return tuple(i for i, (a, b) in enumerate(offsets) if any(a < end and b > begin for begin, end in spans))
