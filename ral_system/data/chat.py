"""From a question with media to the token ids that every engine sees."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from ral_system.config.choices import TAGS, ResponseFormat, ThinkTags
from ral_system.errors import ConfigError
from ral_system.families.chat_template import STAND_IN, ChatTemplate, turn
from ral_system.families.family import Family
from ral_system.types import MARKS, Media, Prompt, Region

_MARK = re.compile("(" + "|".join(MARKS) + ")")
_OPENS_A_THOUGHT = re.compile(r"<think>\s*\Z")


class ChatRenderer:
    """Renders conversations with a model's own chat template. Media placeholders are expanded here and nowhere else.

    An empty `system_prompt` sends no system turn. Raises ConfigError for one that holds special tokens, and for a chat
    template that opens a thought where the response format has none. With `engine_expands` a rollout engine expands
    media by itself, as vLLM does, and must make the same tokens.
    """

    def __init__(
        self,
        family: Family,
        system_prompt: str,
        *,
        response_format: ResponseFormat = "think_answer",
        think_tags: ThinkTags = "special",
        engine_expands: bool = True,
    ) -> None:
        self.family, self._system_prompt, self._engine_expands = family, system_prompt, engine_expands
        self._template = ChatTemplate(family.processor, thinks=response_format == "think_answer")
        self._tokenizer = family.tags_as_text if think_tags == "text" else family.tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()  # which a published tokenizer.json may ask for
        if special := self._special_in(system_prompt):
            raise ConfigError(
                f"data.system_prompt={system_prompt}: {special} has a special meaning to the model; remove it"
            )
        opened = _OPENS_A_THOUGHT.search(self._template.render([*self._system_turn(), turn("user")], answers=True))
        self._opening = opened[0] if opened else ""
        if opened and response_format == "answer_only":
            raise ConfigError(
                "algorithm.response_format=answer_only: the model's chat template begins every response with <think>; "
                "set it to think_answer, or take a model whose template leaves the thought out"
            )

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
        marks and media differ, for evidence that does not fit the media, for text that holds one of the tokenizer's
        special tokens, and for text beside a medium that vLLM would not make the same tokens of.
        """
        for kind_of, most in self.family.max_media.items():
            if (count := sum(medium.kind == kind_of for medium in media)) > most:
                why = f"at most {most} are supported" if most else f"the model reads no {kind_of}s"
                raise ValueError(f"prompt {id}: {count} {kind_of}s; {why}")
        pieces = _MARK.split(question)
        if len(pieces) == 1:
            pieces = [*(f"<{medium.kind}>" for medium in media), *pieces]
        elif [MARKS[mark] for mark in pieces[1::2]] != [medium.kind for medium in media]:
            raise ValueError(f"prompt {id}: marks {pieces[1::2]} for {[medium.kind for medium in media]}")
        texts = [piece for piece in pieces if piece not in MARKS and piece]
        if special := next(filter(None, map(self._special_in, texts)), None):
            raise ValueError(f"prompt {id}: the text holds {special}, which has a special meaning to the model")
        content = [
            {"type": MARKS[piece]} if piece in MARKS else {"type": "text", "text": STAND_IN}
            for piece in pieces
            if piece
        ]
        rendered = self._template.render([*self._system_turn(), {"role": "user", "content": content}], answers=True)
        try:
            unexpanded, expanded, spans = self._filled(rendered, list(filter(None, pieces)), media)
        except ValueError as error:
            raise ValueError(f"prompt {id}: {error}") from None
        encoded = self._tokenizer.encode(expanded, add_special_tokens=False)
        token_ids = tuple(encoded.ids)
        if problem := self.family.problem(token_ids, media):
            raise ValueError(f"prompt {id} {problem}; the chat template and the processor do not fit each other")
        engine_ids = tuple(self._ids(unexpanded))
        if self._engine_expands and (problem := self.family.expansion_problem(token_ids, engine_ids, media)):
            raise ValueError(f"prompt {id}: {problem}, or choose rollout=hf")
        return Prompt(
            id,
            kind,
            question,
            answer,
            tuple(media),
            token_ids,
            engine_token_ids=engine_ids,
            system_tokens=sum(begin < self._system_characters for begin, _ in encoded.offsets),
            question_positions=_inside(spans, encoded.offsets),
            opening=self._opening,
            evidence=tuple(evidence),
        )

    def _filled(
        self, rendered: str, pieces: Sequence[str], media: Sequence[Media]
    ) -> tuple[str, str, list[tuple[int, int]]]:
        """The text with a placeholder for each medium; the text with the media expanded; in that, the first and end
        character of each piece of the question.

        `pieces` are texts and marks. Raises ValueError where the template left something out or changed the order.
        """
        placeholders, texts = set(self.family.placeholders.values()), [p for p in pieces if p not in MARKS]
        system = [self._system_prompt] if self._system_prompt else []
        parts = re.split(f"({'|'.join(map(re.escape, placeholders))}|{STAND_IN})", rendered)
        if parts.count(STAND_IN) != len(system) + len(texts):
            raise ValueError(
                "the model's chat template leaves out data.system_prompt, or the question; empty the former"
            )
        if [part for part in parts if part in placeholders] != [
            self.family.placeholders[medium.kind] for medium in media
        ]:
            raise ValueError("the model's chat template reorders pictures and videos; ask about one kind")
        order = [self.family.placeholders[MARKS[p]] if p in MARKS else STAND_IN for p in pieces]
        if [part for part in parts if part in {*placeholders, STAND_IN}][len(system) :] != order:
            raise ValueError(
                "the model's chat template moves pictures and videos before the text; write their marks first"
            )
        next_text, next_medium = iter([*system, *texts]), iter(media)
        unexpanded, expanded, spans = "", "", []
        for part in parts:
            if part in placeholders:
                unexpanded += part
                expanded += self.family.expanded(next(next_medium))
                continue
            text = next(next_text) if part == STAND_IN else part
            if part == STAND_IN:
                spans.append((len(expanded), len(expanded) + len(text)))
            unexpanded += text
            expanded += text
        return unexpanded, expanded, [(a, b) for a, b in spans[len(system) :] if expanded[a:b].strip()]

    @functools.cached_property
    def _system_characters(self) -> int:
        """Length of the text before the user's turn, whether `system_prompt` or the template itself put it there.

        Special tokens alone, such as a beginning of sequence, do not make a turn.
        """
        before = self._template.before_the_question(self._system_prompt)
        return len(before) if self.family.text(self._ids(before)).strip() else 0

    def _system_turn(self) -> list[dict[str, Any]]:
        return [turn("system")] if self._system_prompt else []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special_in(self, text: str) -> str | None:
        """The first special token in a text, if any. Tags of the response template are text, whatever the tokenizer."""
        return next((token for token in self._special_texts if token in text), None)

    @functools.cached_property
    def _special_texts(self) -> tuple[str, ...]:
        return tuple(token for token in (*self.family.special.values(), STAND_IN) if token not in TAGS)

    def check(self, text: str) -> None:
        """Raise ValueError if a response's text holds one of the tokenizer's special tokens."""
        if special := self._special_in(text):
            raise ValueError(f"the text {text!r} holds {special}, which has a special meaning to the model")

    def response(self, text: str) -> tuple[int, ...]:
        """Return the token ids of an assistant turn, including its end-of-turn token, without what the chat template
        writes of it.

        Raises ValueError for a word that the tokenizer has no token for, for text that holds a special token, and for
        one without a thought where the template opens it.
        """
        self.check(text)
        if self._opening:
            if not text.lstrip().startswith("<think>"):
                raise ValueError(f"the model's chat template opens <think>, and {text[:80]!r} does not begin with it")
            text = text.lstrip().removeprefix("<think>").lstrip()
        ids, unknown = self._ids(text), self.family.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise ValueError(f"the tokenizer has no token for a word of {text!r}")
        return (*ids, self.family.end_of_turn)


def _inside(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Indices of the tokens that hold a character of any of `spans`; `offsets` are each token's first and end one."""
    return tuple(i for i, (a, b) in enumerate(offsets) if any(a < end and b > begin for begin, end in spans))
