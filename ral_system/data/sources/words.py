"""The words of files of questions: what the tokenizer of a tiny model must know to learn from them."""

from __future__ import annotations

import re
from collections import Counter

from ral_system.config.data import FilesConfig
from ral_system.data.sources.questions import Question
from ral_system.data.sources.rows import read_questions

MOST_WORDS = 20_000
_WORD = re.compile(r"</?\w+>|\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Split text as the tiny model's tokenizer does: tags, words, and single other characters."""
    return _WORD.findall(text)


def words_of_files(data: FilesConfig) -> list[str]:
    """Return the words of all rows' questions, options, thoughts and answers, of the system prompt and of the
    instructions: the most frequent first, at most `MOST_WORDS`.

    Rows that cannot be used give none; preparing the data says why. Raises DataError for a file that cannot be read.
    """
    counts: Counter[str] = Counter()
    for text in (data.system_prompt, *data.instructions.values()):
        counts.update(split_words(text))
    for name, source in data.sources.items():
        for _, question in read_questions(name, source):
            if isinstance(question, Question):
                for text in (question.text, question.thought or "", question.answer):
                    counts.update(split_words(text))
    return [word for word, _ in counts.most_common(MOST_WORDS)]
