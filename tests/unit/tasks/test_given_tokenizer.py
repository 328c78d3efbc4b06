"""Qwen's tokenizer in place of the tiny model's own: its ids, its chat template, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ral_system.config.commands import TrainConfig
from ral_system.controller.start import first_model
from ral_system.errors import SetupError
from ral_system.models.loading import load_family
from ral_system.rollout.stopping import stop_token_ids
from ral_system.runs.folder import RunFolder
from ral_system.tasks.given_tokenizer import given_tokenizer, is_tokenizer_of
from ral_system.tasks.open import QuestionSettings
from ral_system.tasks.tiny_model import CHAT_TEMPLATE, SPECIAL_TOKENS, build_config, build_tokenizer, write_tiny_model
from tests import chat_templates
from tests.conftest import SMALL
from tests.qwen_tokenizer import qwen_tokenizer
from tests.real_model import END_OF_TEXT, END_OF_TURN

OPENED = (151_667, 151_668)
"""Qwen3's <think> and </think>."""
QUESTION = "What is 這 👩‍👩‍👧? ما لون النجمة 𠮷"
ANSWER = "<think>A star.</think>\n<answer>B</answer>"


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's tokenizer as people have it: without settings of a chat."""
    folder = tmp_path_factory.mktemp("qwen3")
    qwen_tokenizer(thinks=True).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_the_tiny_model_has_its_ids_and_rows_and_tags_are_as_asked_for(
    qwen3: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config("experiment=smoke", f"model.tiny.tokenizer={qwen3}")
    start = first_model(config, RunFolder(tmp_path), "perceive", config.stages)
    family, reference = load_family(start), qwen_tokenizer(thinks=True)
    assert family.tokenizer.backend_tokenizer.to_str() == reference.backend_tokenizer.to_str()
    with safe_open(start / "model.safetensors", "np") as weights:
        assert weights.get_slice("lm_head.weight").get_shape() == [len(reference), 64]
    assert {family.special[id] for id in family.banned_ids} == set(SPECIAL_TOKENS[3:])
    assert stop_token_ids(family, END_OF_TEXT) == {END_OF_TURN, END_OF_TEXT}
    written = {}
    for think_tags in ("special", "text"):
        asked = make_config("experiment=smoke", f"data.think_tags={think_tags}", "data.system_prompt='看'")
        renderer = QuestionSettings.of(asked).renderer(family)
        prompt = renderer.prompt(id="p", kind="", question=QUESTION, answer="", media=[])
        assert family.tokenizer.decode(prompt.token_ids) == (
            f"<|im_start|>system 看<|im_end|><|im_start|>user {QUESTION}<|im_end|><|im_start|>assistant "
        )
        written[think_tags] = renderer.response(ANSWER)
        assert family.text(written[think_tags]) == ANSWER
    assert {*OPENED} <= {*written["special"]} and not {*OPENED} & {*written["text"]}


@pytest.mark.long
@pytest.mark.parametrize("tokenizer_class", ["TokenizersBackend", "Qwen2Tokenizer"])
def test_saving_it_with_a_model_changes_nothing(qwen3: Path, tokenizer_class: str, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((qwen3 / "tokenizer.json").read_bytes())
    settings = json.loads((qwen3 / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": chat_templates.QWEN2_5_VL}))
    tokenizer = given_tokenizer(str(folder))
    write_tiny_model(tmp_path / "model", tokenizer, **SMALL, seed=0)
    assert is_tokenizer_of(tmp_path / "model", given_tokenizer(str(folder)))
    assert load_family(tmp_path / "model").processor.chat_template == chat_templates.QWEN2_5_VL
    tokenizer.eos_token = "<|endoftext|>"
    assert not is_tokenizer_of(tmp_path / "model", tokenizer)


# --- the chat template ---

OF_TEXT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2.5's, in short: content is a string."""
WITHOUT_VIDEOS = chat_templates.QWEN3_VL.replace("part.type == 'video'", "part.type == 'film'")


def saved(folder: Path, template: str | None, **settings: object) -> str:
    tokenizer = build_tokenizer(["What", "?"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if settings.get(key, value) is not None}
    file.write_text(json.dumps(kept))
    return str(folder)


@pytest.mark.parametrize("template", ["QWEN2_5_VL", "QWEN3_VL", "QWEN3_VL_THINKING", "QWEN3_5"])
def test_its_own_template_is_kept(template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = getattr(chat_templates, template)
    assert given_tokenizer(saved(tmp_path, own)).chat_template == own
    assert capsys.readouterr().err == ""


def test_without_one_it_gets_the_tiny_model_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = given_tokenizer(saved(tmp_path, None, eos_token=None))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token == "<|im_end|>"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (OF_TEXT, 'can only concatenate str (not "list") to str'),
        (WITHOUT_VIDEOS, "reorders pictures and videos"),
        (chat_templates.GEMMA_3.replace("<|video_pad|>", "<|image_pad|>"), "reorders pictures and videos"),
        ("{{ raise_exception('no pictures') }}", "no pictures"),
        ("{% for %}", "Expected an expression"),
        ("Hello", "leaves out"),
    ],
)
def test_one_that_does_not_place_media_is_replaced_with_a_warning(
    template: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = saved(tmp_path, template)
    assert given_tokenizer(name).chat_template == CHAT_TEMPLATE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: model.tiny.tokenizer={name}: its chat template cannot render a picture and a video ("
    )
    assert why in line and line.endswith("); the tiny model gets its usual one")


# --- what is refused ---


def without(*tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer with all special tokens but these."""
    core = build_tokenizer(["What"]).backend_tokenizer
    written = json.loads(core.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] not in tokens]
    return PreTrainedTokenizerFast(tokenizer_object=type(core).from_str(json.dumps(written)))


def test_what_is_no_tokenizer_for_these_models_is_one_line(tmp_path: Path) -> None:
    empty, damaged, lacking, words = (tmp_path / name for name in ("empty", "damaged", "lacking", "words"))
    empty.mkdir()
    damaged.mkdir()
    (damaged / "tokenizer.json").write_text("{")
    without("<|video_pad|>", "<|im_end|>").save_pretrained(lacking)
    plain = without("<|image_pad|>")
    plain.add_tokens([AddedToken("<|image_pad|>", special=False)])
    plain.save_pretrained(words)
    for folder, says in (
        (tmp_path / "nothing", "no such folder; give a local folder with a tokenizer.json"),
        (empty, "no tokenizer.json there; give a local folder with a tokenizer.json"),
        (damaged, "transformers cannot read the tokenizer there ("),
        (lacking, "<|im_end|>, <|video_pad|> are not among its special tokens, and Qwen2.5-VL needs them; give a"),
        (words, "<|image_pad|> is not among its special tokens"),
    ):
        with pytest.raises(SetupError) as refused:
            given_tokenizer(str(folder))
        assert str(refused.value).startswith(f"model.tiny.tokenizer={folder}: {says}")
        assert "\n" not in str(refused.value)


def test_gaps_between_ids_have_rows_of_the_embedding() -> None:
    core = build_tokenizer(["What"]).backend_tokenizer
    written = json.loads(core.to_str())
    written["model"]["vocab"]["far"] = 99
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(core).from_str(json.dumps(written)))
    assert len(tokenizer) < 99
    assert build_config(tokenizer, **SMALL).text_config.vocab_size == 100
