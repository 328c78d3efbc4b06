"""Prompts that vLLM tokenises differently from the processor are refused, with tokenizers as models have them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import InternVLProcessor, PreTrainedTokenizerFast

from ral_system.config.commands import DataCommandConfig
from ral_system.config.data import FilesConfig
from ral_system.data.chat import ChatRenderer
from ral_system.families.family import Family
from ral_system.families.internvl import InternVl
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
from ral_system.tasks.open import QuestionSettings, prepare_files
from ral_system.tasks.visual_search import words
from ral_system.types import Clip, Media, VideoSampling
from tests.chat_templates import INTERNVL
from tests.gemma3_model import build_gemma3
from tests.internvl_model import MARKERS, TILE_PX, build_internvl
from tests.qwen_tokenizer import qwen_tokenizer

PICTURE = Media("a" * 64, TILE_PX, TILE_PX)
VIDEO = Media("b" * 64, TILE_PX, TILE_PX, Clip(VideoSampling(1.0, 8, 2), (0.0, 1.0), 2.0))
IN_A_WORD = "the text before a video shares a token with the number of its first frame, which vLLM splits; put <video>"
NEWLINES = (
    "vLLM reads the newlines beside a picture otherwise, since they merge with those that the model adds; write words"
)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("gemma3")
    build_gemma3(folder, words())
    return load_family(folder)


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """One with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("internvl")
    build_internvl(folder, words())
    tiny, core = load_family(folder), qwen_tokenizer(special=tuple(MARKERS.values())).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=MARKERS
    )
    parts = {"image_processor": tiny.processor.image_processor, "video_processor": tiny.processor.video_processor}
    seen = tiny.processor.image_seq_length
    processor = InternVLProcessor(**parts, tokenizer=tokenizer, image_seq_length=seen, chat_template=INTERNVL)
    return InternVl(tiny.config, processor)


def refusal(family: Family, question: str, *media: Media) -> str | None:
    try:
        ChatRenderer(family, "").prompt(id="p", kind="", question=question, answer="", media=media)
    except ValueError as error:
        return str(error)
    return None


def test_what_takes_a_placeholders_place_becomes_tokens_by_itself(internvl: Family) -> None:
    """Checked by hand: `Frame` and ` Frame` are tokens of the byte-level tokenizer."""
    asked = internvl.tokenizer("is it <video>?", add_special_tokens=False)["input_ids"]
    frame = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    assert internvl.tokenizer.convert_ids_to_tokens(internvl.expanded_apart(asked, [VIDEO])) == [
        *("is", "Ġit", "Ġ", "Frame", "1", ":", "Ġ", "<img>", *["<IMG_CONTEXT>"] * 4, "</img>"),
        *("Ċ", "Frame", "2", ":", "Ġ", "<img>", *["<IMG_CONTEXT>"] * 4, "</img>", "?"),
    ]
    whole = internvl.tokenizer.tokenize(f"is it Frame1: {frame}")
    assert whole[:4] == ["is", "Ġit", "ĠFrame", "1"]


@pytest.mark.parametrize("question", ["What is in <video>?", "What <video> shows", "1. <video>"])
def test_a_video_behind_text_on_its_line_is_refused(internvl: Family, question: str) -> None:
    said = refusal(internvl, question, VIDEO)
    assert said == f"prompt p: {IN_A_WORD} at the start of the question or of a line, or choose rollout=hf"


@pytest.mark.parametrize(
    "question", ["What?", "<video>What?", "What?\n<video>", "What\n\n<video> is it", "\n<video>", "See<video>"]
)
def test_a_video_whose_number_has_tokens_of_its_own_is_not(internvl: Family, question: str) -> None:
    assert refusal(internvl, question, VIDEO) is None


def test_pictures_of_internvl_may_stand_anywhere(internvl: Family) -> None:
    assert refusal(internvl, "What<image> is <image>\n\n\nit", PICTURE, PICTURE) is None
    assert refusal(internvl, "<image>\n<video>", PICTURE, VIDEO) is None
    assert refusal(internvl, "<image> <video>", PICTURE, VIDEO) is not None


@pytest.mark.parametrize(
    "question", ["what<image>\nis", "what<image>\n\n\nis", "\n\n<image>is", "what\n\n\n<image>is", "<image>\n"]
)
def test_newlines_beside_a_picture_of_gemma_are_refused(gemma3: Family, question: str) -> None:
    said = refusal(gemma3, question, PICTURE)
    assert said == f"prompt p: {NEWLINES} behind <image> on its line, and no empty line before it, or choose rollout=hf"


@pytest.mark.parametrize("question", ["what", "<image>what", "what\n<image> is", "what <image> is\n\n\nit"])
def test_a_picture_of_gemma_among_words_is_not(gemma3: Family, question: str) -> None:
    assert refusal(gemma3, question, PICTURE) is None


def test_pictures_of_gemma_on_lines_of_their_own_are_refused(gemma3: Family) -> None:
    assert refusal(gemma3, "<image><image>what", PICTURE, PICTURE) is None
    assert refusal(gemma3, "<image> <image> what", PICTURE, PICTURE) is None
    assert refusal(gemma3, "<image>\n<image>what", PICTURE, PICTURE) is not None


def test_text_alone_may_have_any_newlines(gemma3: Family) -> None:
    assert refusal(gemma3, "what" + "\n" * 5 + "is") is None


def test_such_rows_are_broken_with_reason_and_remedy(gemma3: Family, make_config: Callable, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((TILE_PX, TILE_PX, 3), np.uint8)).save(tmp_path / "0.png")
    questions = ["what is <image> red ?", "what is red ?\n<image>\nwhat", "<image>\n\n\nwhat is red ?"]
    rows = [{"question": question, "answer": "yes", "images": ["0.png"]} for question in questions]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (
        *("data=files", "+data/source@data.sources.main=columns", f"data.sources.main.path={tmp_path}/rows.jsonl"),
        *(f"data.sources.main.columns.{name}={name}" for name in ("question", "answer", "images")),
        *("stages=[rl]", "data.max_broken=1", "data.workers=1", "data.instructions={}", "data.system_prompt=''"),
        "data.image={min_pixels: null, max_pixels: null}",
    )

    def prepare(*engine: str) -> Path:
        config = make_config(*given, *engine, kind=DataCommandConfig)
        assert isinstance(config.data, FilesConfig)
        return prepare_files(QuestionSettings.of(config), config.data, gemma3, tmp_path / "runs")

    prepared = prepare("rollout=vllm")
    assert [line["id"] for line in read_objects(prepared / "questions.jsonl")] == ["main/0"]
    left = {line["id"]: (line["cause"], line["reason"]) for line in read_objects(prepared / "quarantine.jsonl")}
    reason = f"{NEWLINES} behind <image> on its line, and no empty line before it, or choose rollout=hf"
    assert left == {"main/1": ("broken", reason), "main/2": ("broken", reason)}
    summary = json.loads((prepared / "prepared.json").read_text())
    assert summary["reasons"] == {reason: 2}
    of_hf = prepare("rollout=hf")
    assert of_hf != prepared and len(list(read_objects(of_hf / "questions.jsonl"))) == 3
