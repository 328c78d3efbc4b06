"""Which rows and keys an attention policy is made of, on a real prompt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral_system.attention.provenance import KeyKind
from ral_system.attention.selection import answer_rows, select_keys, select_rows
from ral_system.batches.collate import Collator, TensorBatch
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.types import Sample


@pytest.fixture(scope="module")
def words(tiny_model: Path, draw_samples: Callable[[int], list[Sample]]) -> list[str]:
    sample = draw_samples(1)[0]
    ids = (*sample.prompt.token_ids, *sample.response_token_ids)
    return load_family(tiny_model).tokenizer.convert_ids_to_tokens(ids)


def collated(tiny_model: Path, media: MediaStore, sample: Sample) -> TensorBatch:
    return Collator(load_family(tiny_model), media)((sample,))


def test_rows_are_those_named(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]], words: list[str]
) -> None:
    sample = draw_samples(1)[0]
    first, last = words.index("<think>"), len(words) - 1
    asked = sample.prompt.question.split()
    batch = collated(tiny_model, media, sample)
    (start,) = [i for i in range(first) if words[i : i + len(asked)] == asked]
    for rows, expected in (
        ("generated", list(range(first, last + 1))),
        ("predicting", list(range(first - 1, last))),
        ("answer", list(range(words.index("<answer>") + 1, words.index("</answer>")))),
        ("instruction", list(range(start, start + len(asked)))),
    ):
        assert [r.tolist() for of_group in batch.rows[rows] for r in of_group] == [expected], rows  # type: ignore[index]


def test_keys_are_those_named(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]], words: list[str]
) -> None:
    sample = draw_samples(1)[0]
    prompt = len(sample.prompt.token_ids)
    found = collated(tiny_model, media, sample).keys
    assert select_keys("all", found) is None
    for keys, expected in (
        ("visual", [w == "<|image_pad|>" for w in words]),
        ("prompt", [i < prompt for i in range(len(words))]),
        ("no_sinks", [i >= 4 for i in range(len(words))]),
    ):
        assert select_keys(keys, found).tolist() == expected, keys  # type: ignore[arg-type, union-attr]


def test_every_key_of_a_prompt_knows_what_it_is(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]], words: list[str]
) -> None:
    sample = draw_samples(1)[0]
    keys = collated(tiny_model, media, sample).keys
    system_end, prompt = words.index("<|im_end|>"), len(sample.prompt.token_ids)
    for i, word in enumerate(words):
        expected = (
            KeyKind.GENERATED
            if i >= prompt
            else KeyKind.SYSTEM
            if i <= system_end
            else KeyKind.IMAGE
            if word == "<|image_pad|>"
            else KeyKind.TEXT
        )
        assert keys.kind[i] == expected, (i, word)
    at = (keys.kind == KeyKind.IMAGE).nonzero()[:, 0]
    assert torch.stack([keys.media, keys.frame, keys.row, keys.column])[:, at].T.tolist() == [
        [0, 0, r, c] for r in range(2) for c in range(2)
    ]


def test_unknown_names_are_refused(draw_samples: Callable[[int], list[Sample]]) -> None:
    with pytest.raises(ValueError, match="rows='all'; known: generated, predicting, answer, instruction"):
        select_rows("all", draw_samples(1)[0], str)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys='text'; known: all, visual, prompt, no_sinks"):
        select_keys("text", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pieces", "rows"),
    [
        (["<think>", "a", "</think>", "<answer>", "red", "circle", "</answer>", "<|im_end|>"], [4, 5]),
        (["<", "answer", ">", " red", " circle", "</", "answer", ">", ""], [3, 4]),  # tags of several tokens
        (["<answer", ">red", "</answer>"], [1]),  # a token with a tag's end and the answer's beginning
        (["<answer>", "red"], [1]),  # cut off
        (["</answer>", "<answer>", "red", "</answer>"], [2]),  # a stray closing tag before
        (["red", "circle"], [0, 1]),  # no answer: all
        (["<answer>", "</answer>"], [0, 1]),  # empty: all
        (["<answer>"], [0]),
    ],
)
def test_rows_of_the_answer(pieces: list[str], rows: list[int]) -> None:
    assert answer_rows(pieces) == rows
