"""SmolVLM2 and Idefics3 against transformers: text, pixels, places, log-probs, attention; what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode

from ral_system.config.commands import PlanCommandConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.families.family import sized
from ral_system.families.smolvlm import LongSideBudget, SmolVlm, patch_places
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.planning.workload import largest_medium
from ral_system.tasks.visual_search import words
from ral_system.types import Clip, Layout, Media, Sample, VideoSampling, View
from tests.composed import compose_config
from tests.smolvlm_model import MARKERS, build_smolvlm
from tests.unit.families.of_transformers import (
    Bench,
    check_generation_is_scored,
    check_packed_is_alone,
    check_places,
    check_shared_tiles,
)

TILE_PX, EDGE_PX = 28, 84
SIZES = [(84, 56), (28, 28), (61, 100)]
VIDEO = Media("v" * 64, 28, 28, Clip(VideoSampling(1.0, 4, 2, 1), (0.0, 1.0), 2.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smolvlm")
    build_smolvlm(path, words())
    return path


@pytest.fixture(scope="module")
def bench(folder: Path, media: MediaStore) -> Bench:
    return Bench(folder, media, SIZES)


@pytest.fixture(scope="module")
def idefics3(tmp_path_factory: pytest.TempPathFactory, media: MediaStore) -> Bench:
    path = tmp_path_factory.mktemp("idefics3")
    build_smolvlm(path, words(), model_type="idefics3")
    return Bench(path, media, SIZES)


@pytest.mark.parametrize("name", ["bench", "idefics3"])
def test_packed_questions_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    check_packed_is_alone(request.getfixturevalue(name))


@pytest.mark.parametrize("name", ["bench", "idefics3"])
def test_generation_has_the_log_probs_of_scoring(
    name: str, request: pytest.FixtureRequest, make_config: Callable
) -> None:
    check_generation_is_scored(request.getfixturevalue(name), make_config)


def test_a_change_of_the_picture_changes_the_token_at_its_place(bench: Bench) -> None:
    check_places(bench, 84, 84)
    check_places(bench, 84, 28)
    check_places(bench, 50, 120)


def test_ranks_share_the_tiles(bench: Bench) -> None:
    check_shared_tiles(bench)


@pytest.mark.parametrize("name", ["bench", "idefics3"])
def test_text_and_pixels_are_the_processors(name: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(name)
    draw, family = np.random.default_rng(1), bench.family
    for i in range(40):
        width, height = draw.integers(8, 300, 2).tolist()
        medium = bench.picture(i, width, height)
        picture = bench.store.open(medium)
        inputs = family.processor(text=["<image>"], images=[picture], return_tensors="pt")
        expanded = family.tokenizer(family.expanded(medium), add_special_tokens=False)["input_ids"]
        assert inputs["input_ids"][0].tolist() == expanded and family.problem(expanded, (medium,)) is None
        (features,) = family.features([medium], [picture])
        assert torch.equal(features["pixel_values"], inputs["pixel_values"][0])
        assert inputs["pixel_attention_mask"].all()  # which is why the encoder gets none
        assert features["tiles"].tolist() == [[len(family.layout(medium).views)]]
        # as large as the model sees it, it is cut without being resized
        seen = replace(medium, **dict(zip(("width_px", "height_px"), family._budget.size(width, height), strict=True)))
        assert family.layout(seen) == family.layout(medium) and family._budget.size(*seen_size(seen)) == seen_size(seen)


def seen_size(medium: Media) -> tuple[int, int]:
    return medium.width_px, medium.height_px


def test_a_picture_of_whole_tiles_is_cut_without_resizing(bench: Bench) -> None:
    medium = bench.picture(3, 84, 56)
    pixels = torch.tensor(np.asarray(bench.store.open(medium))).permute(2, 0, 1)
    (features,) = bench.family.features([medium], [bench.store.open(medium)])
    cut = pixels.unfold(1, TILE_PX, TILE_PX).unfold(2, TILE_PX, TILE_PX).flatten(1, 2).transpose(0, 1)
    assert torch.allclose(features["pixel_values"][:6], (cut / 255 - 0.9) / 0.3, atol=1e-5)


def test_tiles_go_row_by_row_and_the_whole_follows(bench: Bench) -> None:
    assert bench.family.layout(Media("", 84, 56)) == Layout(
        "image",
        (
            View(2, 2, box=(0.0, 0.0, 1 / 3, 0.5)),
            View(2, 2, box=(1 / 3, 0.0, 2 / 3, 0.5)),
            View(2, 2, box=(2 / 3, 0.0, 1.0, 0.5)),
            View(2, 2, box=(0.0, 0.5, 1 / 3, 1.0)),
            View(2, 2, box=(1 / 3, 0.5, 2 / 3, 1.0)),
            View(2, 2, box=(2 / 3, 0.5, 1.0, 1.0)),
            View(2, 2),
        ),
        separated=True,
    )
    fake, seen = "<fake_token_around_image>", "<image>" * 4
    assert bench.family.expanded(Media("", 28, 84)) == (
        f"{fake}<row_1_col_1>{seen}\n{fake}<row_2_col_1>{seen}\n{fake}<row_3_col_1>{seen}\n\n{fake}<global-img>{seen}{fake}"
    )


def test_without_tiles_a_picture_is_one_view(folder: Path, tmp_path: Path, media: MediaStore) -> None:
    shutil.copytree(folder, tmp_path / "m")
    change(tmp_path / "m" / "processor_config.json", '"do_image_splitting": true', '"do_image_splitting": false')
    bench = Bench(tmp_path / "m", media, SIZES)
    check_packed_is_alone(bench)
    medium = bench.prompts[0].media[0]
    assert bench.family.layout(medium) == Layout("image", (View(2, 2),)) and bench.family.picture_bounds == (784, 784)
    fake = "<fake_token_around_image>"
    assert bench.family.expanded(medium) == f"{fake}<global-img>{'<image>' * 4}{fake}"


def bytes_and_two_newlines() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer that merges two newlines into one token, as published ones do."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    core = Tokenizer(models.BPE({token: i for i, token in enumerate([*sorted(letters), "ĊĊ"])}, [("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens={**MARKERS, "begin": "<|im_start|>"}
    )


def test_newlines_merge_as_the_processors_do(bench: Bench) -> None:
    processor, tokenizer = bench.family.processor, bytes_and_two_newlines()
    real = transformers.SmolVLMProcessor(
        processor.image_processor, tokenizer, processor.video_processor, 4, processor.chat_template
    )
    family, picture = SmolVlm(bench.family.config, real), bench.prompts[0].media[0]
    prompt = ChatRenderer(family, "Answer.").prompt(
        id="p", kind="", question="What is\n<image>\n\nthis?", answer="", media=(picture,)
    )
    assert tokenizer.decode(prompt.engine_token_ids) == (
        "<|im_start|>System: Answer.<end_of_utterance>\nUser: What is\n<image>\n\nthis?<end_of_utterance>\nAssistant:"
    )
    text = tokenizer.decode(prompt.engine_token_ids)
    inputs = real(text=[text], images=[bench.store.open(picture)], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == list(prompt.token_ids)
    assert list(prompt.token_ids).count(tokenizer.convert_tokens_to_ids("ĊĊ")) == 2  # behind the rows, and the user's
    assert family.end_of_turn == tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert prompt.system_tokens == len(tokenizer("<|im_start|>System: Answer.<end_of_utterance>\n")["input_ids"])


def test_a_template_is_filled_in_without_warnings(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """transformers' processor passes arguments that transformers then warns of."""
    logging = transformers.utils.logging.get_logger("transformers.processing_utils")
    logging.addHandler(caplog.handler)
    try:
        ChatRenderer(bench.family, "what").prompt(id="p", kind="", question="what ?", answer="", media=())
    finally:
        logging.removeHandler(caplog.handler)
    assert not caplog.records


def test_all_markers_are_banned(bench: Bench) -> None:
    names = set(bench.family.tokenizer.convert_ids_to_tokens(bench.family.banned_ids))
    assert names == set(MARKERS.values()) - {"<end_of_utterance>"} and len(names) == 19


def test_text_alone_runs_the_encoder_and_has_gradients_of_zero(folder: Path, bench: Bench) -> None:
    policy = PolicyModel(load_model(folder, dtype="float32"), bench.family, temperature=1.0)
    policy(bench.collate((Sample("s", bench.prompts[2], (3, 4)),))).log_probs.sum().backward()
    visual = [*bench.family.vision_encoder(policy.model).parameters()]
    visual += [p for module in bench.family.projector(policy.model) for p in module.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in visual)
    assert any(p.grad is not None and p.grad.any() for p in policy.model.get_decoder().parameters())


def test_operations_of_the_encoder_are_those_that_torch_counts(folder: Path, bench: Bench) -> None:
    """Attention, which torch does not count on CPU, by hand: 16 patches in each of 4 views and 2 layers."""
    model, layout = load_model(folder, dtype="float32"), bench.family.layout(Media("", 84, 28))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        bench.family._seen(model.model, torch.randn(4, 3, TILE_PX, TILE_PX))
    attention = bench.family.vision_attention_flops(layout)
    assert attention == 4 * 64 * 2 * 4 * 16**2
    assert FlopCounter(model, bench.family).vision([layout]) == attention + counted.get_total_flops()


# --- where patches are ---


def test_positions_of_patches_are_those_of_vllm() -> None:
    """i / n among the borders k / n. At 32 and 26 patches along a side each is in its own bucket; at 27 vLLM's rounding
    puts the eleventh into the tenth's, and transformers' does not.
    """
    for side in (4, 26, 32):
        assert patch_places(side).tolist() == list(range(side**2))
    assert patch_places(27)[:27].tolist() == [*range(10), 9, *range(11, 27)]
    assert patch_places(27)[10 * 27].item() == 9 * 27


def test_positions_of_patches_do_not_depend_on_the_precision(tmp_path: Path) -> None:
    """transformers compares in bfloat16, and moves 1 of 6 patches along each side."""
    build_smolvlm(tmp_path, words(), side=6, scale=3)
    model, family = load_model(tmp_path, dtype="bfloat16"), load_family(tmp_path)
    embeddings, asked = model.model.vision_model.embeddings, []
    embeddings.position_embedding.register_forward_hook(lambda module, inputs, output: asked.append(inputs[0]))
    pixels = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        family.encode(model.model, {"pixel_values": pixels, "tiles": torch.tensor([[1]])})
        model.model.get_image_features(pixels[None])
    ours, theirs = (places.flatten().tolist() for places in asked)
    assert ours == list(range(36)) and sum(a != b for a, b in zip(ours, theirs, strict=True)) == 11


# --- sizes ---


def test_the_longer_side_has_as_many_tiles_whatever_the_size(bench: Bench) -> None:
    budget = LongSideBudget(512, 2048)
    assert budget.size(640, 480) == (2048, 1536) and budget.size(64, 64) == (2048, 2048)
    assert budget.size(9000, 30) == (2048, 512) and budget.size(30, 9000) == (512, 2048)
    images = bench.family.processor.image_processor
    for width, height in np.random.default_rng(2).integers(1, 3000, (300, 2)).tolist():
        _, rows, columns = images.get_number_of_image_patches(
            height, width, {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
        )
        found = budget.size(width, height)
        assert found == (512 * columns, 512 * rows) and budget.size(*found) == found


def test_bounds_of_pixels_hold_all_that_the_processor_makes(bench: Bench, make_config: Callable) -> None:
    def budgets(least: int | None = None, most: int | None = None) -> Any:
        bounds = f"data.image={{min_pixels: {least or 'null'}, max_pixels: {most or 'null'}}}"
        return bench.family.pixel_budgets(
            make_config("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]", bounds).data
        )

    assert bench.family.picture_bounds == (28 * 84, 84 * 84) and bench.family.pixels_per_token == 14**2
    assert budgets()["image"] == budgets(28 * 84, 84 * 84)["image"] == LongSideBudget(28, 84)
    with pytest.raises(ConfigError, match=r"^data.image.max_pixels=7000: the model's processor makes 2352 to 7056"):
        budgets(most=7000)
    with pytest.raises(ConfigError, match=r"^data.image.min_pixels=2353: .*; set it to null, or change size.longest"):
        budgets(least=2353)


# --- what is refused ---


def test_videos_are_refused_by_name(bench: Bench, make_config: Callable) -> None:
    with pytest.raises(ValueError, match=r"^prompt p: 1 videos; the model reads no videos$"):
        ChatRenderer(bench.family, "").prompt(id="p", kind="", question="what ?", answer="", media=(VIDEO,))
    own = "data.image={min_pixels: null, max_pixels: null}"
    settings = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]", own)
    budgets = bench.family.pixel_budgets(make_config(*settings).data)
    with pytest.raises(DataError, match=r"^the model reads no videos$"):
        sized(VIDEO, budgets)
    config = compose_config(*settings, kind=PlanCommandConfig)
    picture = largest_medium(config.data, config.plan, bench.family)
    assert picture is not None and bench.family.tokens(picture) == 28  # 3 × 2 tiles and the whole
    with pytest.raises(ConfigError, match=r"^plan\.medium=video: the model reads none; leave it null$"):
        largest_medium(config.data, config.plan.model_copy(update={"medium": "video"}), bench.family)
    config = compose_config("data=video_search", "stages=[rl]", kind=PlanCommandConfig)
    with pytest.raises(ConfigError, match=r"^data=video_search has no pictures or videos that the model reads; choose"):
        largest_medium(config.data, config.plan, bench.family)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("processor_config.json", '"image_seq_len": 4', '"image_seq_len": 9', "makes 4 tokens of a tile of 28x28"),
        ("config.json", '"scale_factor": 2', '"scale_factor": 4', "makes 1 tokens of a tile of 28x28 px"),
        ("config.json", '"image_size": 28', '"image_size": 56', "has max_image_size={'longest_edge': 28}"),
        ("processor_config.json", '"longest_edge": 84', '"longest_edge": 80', "up to 4096 is served.*; set it to 56$"),
        ("processor_config.json", '"longest_edge": 84', '"longest_edge": 8400', "; set it to 4088$"),
    ],
)
def test_a_model_that_the_engine_would_read_otherwise_is_one_line(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, why: str
) -> None:
    shutil.copytree(folder, tmp_path / "m")
    change(tmp_path / "m" / file, old, new)
    with pytest.raises(SetupError, match=why) as refused:
        load_family(tmp_path / "m")
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(SetupError, match=r"Package `num2words` is required .* `pip install num2words`") as refused:
        load_family(folder)
    assert "\n" not in str(refused.value)


def test_the_family_is_found_by_its_types(bench: Bench, idefics3: Bench) -> None:
    assert type(bench.family) is SmolVlm is type(idefics3.family)
