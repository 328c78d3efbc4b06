"""Gemma 3 against transformers: text, pixels, log-probs, attention, generation, training; what is refused."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.intervention import Intervention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.config.commands import PlanCommandConfig, TrainConfig
from ral_system.config.supervised import AttentionGuidanceConfig
from ral_system.data.chat import ChatRenderer
from ral_system.device_kind import meta_stands_for
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.families.family import sized
from ral_system.families.gemma3 import Gemma3
from ral_system.families.tiles import TileBudget
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family, load_model, save_model
from ral_system.models.named_weights import named_weights
from ral_system.models.policy import PolicyModel
from ral_system.planning.workload import largest_medium
from ral_system.rollout.hf_generator import HfEngine
from ral_system.tasks.visual_search import words
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.supervised import guide_attention
from ral_system.types import Counts, Layout, Media, Sample, Sampling, View
from ral_system.weights.manifest import verify_loaded
from tests.composed import compose_config
from tests.gemma3_model import SIDE_PX, WINDOW, build_gemma3
from tests.offered import read_whole
from tests.unit.families.of_transformers import (
    Bench,
    OneByOne,
    check_generation_is_scored,
    check_packed_is_alone,
    check_places,
)
from tests.unit.training.learners import plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    build_gemma3(path, words())
    return path


@pytest.fixture(scope="module")
def bench(folder: Path, media: MediaStore) -> Bench:
    return Bench(folder, media, [(84, 56), (28, 28), (61, 100)])


def test_packed_questions_are_those_of_transformers(bench: Bench) -> None:
    """Windows end within every prompt, and attention at each layer is that of eager attention."""
    assert min(len(prompt.token_ids) for prompt in bench.prompts) > WINDOW
    check_packed_is_alone(bench)


def test_a_picture_longer_than_the_window_is_that_of_transformers(tmp_path: Path, media: MediaStore) -> None:
    build_gemma3(tmp_path, words(), side=4)
    assert WINDOW < 4**2
    check_packed_is_alone(Bench(tmp_path, media, [(84, 56), (28, 28)]))


def test_its_kernel_on_a_gpu_is_named_with_what_needs_masks(folder: Path) -> None:
    policy = PolicyModel(load_model(folder, dtype="bfloat16"), load_family(folder), temperature=1.0)
    assert policy.attention_kernel() == "torch's scaled_dot_product_attention"
    policy.to("meta")
    with meta_stands_for("cuda"):
        assert policy.attention_kernel() == (
            "torch's varlen attention; for pictures and sliding windows torch's scaled_dot_product_attention with masks"
        )


def test_generation_has_the_log_probs_of_scoring(bench: Bench, make_config: Callable) -> None:
    check_generation_is_scored(bench, make_config)


def test_a_steered_engine_knows_where_keys_are_in_layers_with_a_window(bench: Bench, make_config: Callable) -> None:
    how = Intervention(image=3.0, system=0.5)
    engine = HfEngine(bench.folder, make_config().rollout, bench.store, seed=0, intervention=how)
    found = list(engine.generate(bench.prompts[:2], Sampling(completions=1, temperature=1.0, max_new_tokens=6, seed=5)))
    of = {prompt.id: prompt for prompt in bench.prompts}
    samples = tuple(Sample(c.id, of[c.prompt_id], c.token_ids) for c in found)
    policy = PolicyModel(bench.model, bench.family, temperature=1.0, intervention=how)
    with torch.no_grad():
        scored, plain = policy(bench.collate(samples)).log_probs, unsteered(bench, samples)
    for row, completion in enumerate(found):
        own = scored[row, : len(completion.token_ids)]
        assert torch.allclose(own, torch.tensor(completion.log_probs), atol=2e-5)
    assert not torch.allclose(scored, plain, atol=1e-3)


def unsteered(bench: Bench, samples: tuple[Sample, ...]) -> torch.Tensor:
    return PolicyModel(bench.model, bench.family, temperature=1.0)(bench.collate(samples)).log_probs


def test_a_change_of_the_picture_changes_the_token_at_its_place(bench: Bench) -> None:
    check_places(bench, 84, 56)
    check_places(bench, 28, 90)


def test_text_and_pixels_are_the_processors(bench: Bench) -> None:
    """Thirty random sizes, each squashed to one; texts begin and end with newlines that merge with the picture's."""
    draw, family = np.random.default_rng(1), bench.family
    for i in range(30):
        width, height = draw.integers(8, 300, 2).tolist()
        medium = bench.picture(i, width, height)
        before, after = ("what" + "\n" * int(n) for n in draw.integers(0, 3, 2))
        inputs = family.processor(
            text=[f"{before}<start_of_image>{after[::-1]}"], images=[bench.store.open(medium)], return_tensors="pt"
        )
        text = before + family.expanded(medium) + after[::-1]
        assert inputs["input_ids"][0].tolist() == family.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert inputs["token_type_ids"].sum() == family.tokens(medium) == 4
        (features,) = family.features([medium], [bench.store.open(medium)])
        assert torch.equal(features["pixel_values"], inputs["pixel_values"])


def test_newlines_beside_pictures_merge(bench: Bench) -> None:
    """Two pictures one behind the other: the end of one and the beginning of the next are one token."""
    media = [bench.picture(i, 28, 28) for i in range(2)]
    prompt = ChatRenderer(bench.family, "").prompt(id="p", kind="", question="what ?", answer="", media=media)
    tokens = bench.family.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    visual = ["<start_of_image>", *["<image_soft_token>"] * 4, "<end_of_image>"]
    question = ["what", " ", "?", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"]
    assert tokens == ["<bos>", "<start_of_turn>", "user", "\n" * 3, *visual, "\n" * 4, *visual, "\n" * 2, *question]
    sent = bench.family.tokenizer.convert_ids_to_tokens(prompt.engine_token_ids)
    assert sent[3:7] == ["\n", "<start_of_image>", "<start_of_image>", "what"]
    assert prompt.system_tokens == 0
    assert bench.family.problem(prompt.token_ids, media) is None
    assert bench.family.problem(prompt.token_ids, media[:1]) == (
        "has 4 image tokens + 4 image tokens, but its media make 4 image tokens"
    )


def test_the_system_prompt_stands_in_the_users_turn(bench: Bench) -> None:
    prompt = ChatRenderer(bench.family, "red").prompt(id="p", kind="", question="what ?", answer="", media=[])
    tokens = bench.family.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert tokens[: prompt.system_tokens] == ["<bos>", "<start_of_turn>", "user", "\n", "red"]


def test_what_marks_a_picture_is_banned_and_a_turn_ends_as_in_the_template(bench: Bench) -> None:
    name = bench.family.tokenizer.convert_tokens_to_ids
    markers = ["<start_of_image>", "<image_soft_token>", "<end_of_image>"]
    assert set(bench.family.banned_ids) == set(name(markers))
    assert bench.family.visual_ids == {"image": name("<image_soft_token>")}
    assert bench.family.end_of_turn == name("<end_of_turn>") != bench.family.tokenizer.eos_token_id


def test_pictures_attend_in_both_directions_within_the_prompt(bench: Bench) -> None:
    """The second question has two pictures; text alone has none."""
    group = bench.family.packed(bench.prompts[1].token_ids, [3, 0])
    visual = bench.family.tokenizer.convert_tokens_to_ids("<image_soft_token>")
    runs = [bench.prompts[1].token_ids[first:end] for first, end in group.pictures]
    assert runs == [(visual,) * 4] * 2
    assert group.prompt == len(bench.prompts[1].token_ids) and group.responses == (3, 0)
    assert bench.family.packed(bench.prompts[2].token_ids, [3]).pictures == ()


def test_text_alone_runs_the_encoder_and_has_gradients_of_zero(folder: Path, bench: Bench) -> None:
    policy = PolicyModel(load_model(folder, dtype="float32"), bench.family, temperature=1.0)
    policy(bench.collate((Sample("s", bench.prompts[2], (20, 21)),))).log_probs.sum().backward()
    visual = [*bench.family.vision_encoder(policy.model).parameters()]
    visual += [p for module in bench.family.projector(policy.model) for p in module.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in visual)
    assert any(p.grad is not None and p.grad.any() for p in policy.model.get_decoder().parameters())


@torch.no_grad()
def test_ranks_share_the_pictures(bench: Bench) -> None:
    media = [medium for prompt in bench.prompts for medium in prompt.media]
    features = bench.collate._extract(media)
    told: list[torch.Tensor] = []
    whole = bench.family.encode(bench.model.model, features)["image"]
    bench.family.encode(bench.model.model, features, OneByOne(0, 2, told))
    assert 0 < len(told[0]) < 3
    found = bench.family.encode(bench.model.model, features, OneByOne(1, 2, told))["image"]
    assert len(found) == 3
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(whole, found, strict=True))


def test_operations_are_those_that_torch_counts(bench: Bench) -> None:
    """All but the projection, which is a parameter by itself. Pairs by hand: of 3 layers 2 have a window of 12."""
    counter, layout = FlopCounter(bench.model, bench.family), Layout("image", (View(2, 2),))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        bench.model.model.get_image_features(torch.randn(1, 3, SIDE_PX, SIDE_PX), return_dict=True)
    pairs, projection = bench.family.vision_attention_flops(layout), 2 * 4 * 64 * 64
    assert pairs == 4 * 64 * 2 * 16**2
    assert counter.vision([layout]) - pairs == counted.get_total_flops() - projection
    packing = Packing((PackedGroup(20, (3, 5), ((2, 6),)), PackedGroup(4, (5,))))
    full = (20 * 21 // 2 + 6) + (3 * 4 // 2 + 3 * 20) + (5 * 6 // 2 + 5 * 20) + 9 * 10 // 2
    windowed = (12 * 13 // 2 + 8 * 12 + 6) + 3 * 12 + 5 * 12 + 9 * 10 // 2
    of_tokens = counter.text(Packing((PackedGroup(0, (1,)),))) - 3 * 4 * 2 * 32
    assert counter.text(packing) == 37 * of_tokens + 4 * 2 * 32 * (full + 2 * windowed)


# --- training ---


@pytest.fixture
def judged(bench: Bench) -> list[Sample]:
    """Two responses to every question with their log-probs, one better than the other."""
    samples = bench.samples(2)
    with torch.no_grad():
        log_probs = PolicyModel(bench.model, bench.family, temperature=1.0)(bench.collate(samples)).log_probs
    return [
        replace(
            sample,
            rollout_log_probs=tuple(log_probs[i, : len(sample.response_token_ids)].tolist()),
            advantage=(1.0, -0.6)[i % 2],
            index=i % 2,
        )
        for i, sample in enumerate(samples)
    ]


LORA = "learner.lora={rank: 2, alpha: 4, targets: [q_proj, down_proj], vision: false}"


@pytest.mark.parametrize(
    "own", [(), ("model.freeze_vision=true",), (LORA, "stages=[rl]")], ids=["all", "frozen", "lora"]
)
@pytest.mark.usefixtures("one_thread")
def test_the_engine_has_the_weights_of_the_learner(
    folder: Path, bench: Bench, judged: list[Sample], make_config: Callable[..., TrainConfig], own: tuple[str, ...]
) -> None:
    """After updates with attention's term at all layers: log-probs agree, and the head is the new embedding."""
    settings = ("algorithm.attention={weight: 5.0, layers: all}", "learner.learning_rate=1e-2", "rollout.temperature=1")
    config = make_config(*settings, "learner.warmup_updates=0", "algorithm.kl.coefficient=0", *own)
    rank = LearnerRank(config, folder, bench.store, 0, 1, "rl")
    engine = HfEngine(folder, config.rollout, bench.store, seed=0)
    split = plan(judged, 2, 4)
    scores = rank.score(split)
    metrics = [rank.update(update, scores, None) for update in split.updates]
    assert abs(metrics[0]["attention/loss"]) < 1e-12 and metrics[1]["attention/loss"] != 0
    manifest = read_whole(rank, 1)
    assert manifest is not None and "lm_head.weight" not in manifest.tensors  # it is the embedding
    before = engine.held(manifest)
    changed = {name for name, tensor in manifest.tensors.items() if before.tensors[name] != tensor}
    assert any("q_proj" in name for name in changed)
    assert any("vision_tower" in name for name in changed) == (not own)
    assert ("model.language_model.embed_tokens.weight" in changed) == (LORA not in own)
    verify_loaded(manifest, engine.load_weights(rank.offer(manifest, tuple(manifest.tensors))[1]))
    assert engine._model.lm_head.weight is engine._model.get_input_embeddings().weight
    sampling = Sampling(completions=2, temperature=1.0, max_new_tokens=5, seed=5)
    found = sorted(engine.generate(bench.prompts, sampling), key=lambda c: c.id)
    of = {prompt.id: prompt for prompt in bench.prompts}
    completed = [Sample(c.id, of[c.prompt_id], c.token_ids, c.log_probs, 1.0, c.weight_version) for c in found]
    assert {c.weight_version for c in found} == {1}
    rank.score(plan(completed, 1, 4))  # raises where log-probs differ by more than 1e-4


def test_guidance_needs_keys_within_the_window() -> None:
    """The last row of 9 tokens sees the keys from 5 on; the picture is at 1 and 2."""
    from types import SimpleNamespace

    from ral_system.attention.provenance import key_provenance

    keys = key_provenance(
        torch.tensor([False, True, True, *[False] * 6]),
        [Layout("image", (View(1, 2),))],
        system_tokens=0,
        prompt_tokens=9,
        positions=torch.arange(9),
    )
    batch = SimpleNamespace(input_ids=torch.arange(9), keys=keys, packing=Packing((PackedGroup(9, (0,)),)))
    guidance = AttentionGuidanceConfig(image=1.0, system=0.0)
    for window, reached in ((4, False), (7, True)):
        layers = (LayerAttention(torch.randn(1, 2, 8), torch.randn(9, 1, 8), 0.3, window),)
        group = GroupAttention.alone(layers, torch.tensor([8]))
        if reached:
            assert guide_attention([group], batch, Counts(1, 1), guidance)[0] > 0  # type: ignore[arg-type]
            continue
        with pytest.raises(ConfigError) as refused:
            guide_attention([group], batch, Counts(1, 1), guidance)  # type: ignore[arg-type]
        assert str(refused.value) == (
            "sft.attention_guidance.image: layer 0 sees 4 tokens back, and the question is further from all image "
            "tokens of its prompt; set it to 0, or ask shorter questions"
        )


# --- names, sizes, and what is refused ---


def test_a_saved_model_has_the_published_names(folder: Path, bench: Bench, tmp_path: Path) -> None:
    def names(of: Path) -> Iterator[str]:
        with safe_open(of / "model.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
            yield from file.keys()

    model = load_model(folder, dtype="float32")
    save_model(model, named_weights(model), bench.family.processor, tmp_path, folder)
    assert sorted(names(tmp_path)) == sorted(names(folder))
    assert any(name.startswith("vision_tower.vision_model.") for name in names(tmp_path))
    of = Gemma3.engine_names.of
    assert of("model.vision_tower.encoder.a") == "model.vision_tower.vision_model.encoder.a"
    assert of("model.language_model.embed_tokens.weight") == "model.language_model.embed_tokens.weight"


def test_pictures_have_one_size(bench: Bench, make_config: Callable) -> None:
    base = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]")
    budgets = bench.family.pixel_budgets(make_config(*base, "data.image={min_pixels: null, max_pixels: null}").data)
    assert budgets == {"image": TileBudget(SIDE_PX, 1, 1, (1, 1))}
    assert bench.family.picture_bounds == (784, 784) and bench.family.pixels_per_token == 196
    for width, height in ((640, 480), (3, 900)):
        seen = sized(Media("", width, height), budgets)
        assert (seen.width_px, seen.height_px) == (SIDE_PX, SIDE_PX)
    with pytest.raises(ConfigError, match=r"data.image.max_pixels=900 is outside .* allows, 784 to 784 pixels"):
        bench.family.pixel_budgets(make_config(*base, "data.image={min_pixels: null, max_pixels: 900}").data)


def test_videos_are_refused_by_name(bench: Bench) -> None:
    video = bench.video(3, 3, 28, 56)
    with pytest.raises(ValueError, match=r"^prompt p: 1 videos; the model reads no videos$"):
        ChatRenderer(bench.family, "").prompt(id="p", kind="", question="what ?", answer="", media=[video])
    config = compose_config("data=video_search", kind=PlanCommandConfig)
    with pytest.raises(ConfigError, match=r"^data=video_search has no pictures or videos that the model reads; choose"):
        largest_medium(config.data, config.plan, bench.family)
    with pytest.raises(DataError, match=r"^the model reads no videos$"):
        sized(video, {"image": TileBudget(SIDE_PX, 1, 1, (1, 1))})


def test_vllm_is_refused_on_cpu(bench: Bench) -> None:
    problem = bench.family.engine_problem("cpu", "float32")
    assert problem is not None and "\n" not in problem
    assert problem.startswith("rollout.engine=vllm on a CPU: its attention is causal within pictures")
    assert "choose rollout=hf" in problem
    assert bench.family.engine_problem("cuda", "float32") is None


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (
            "config.json",
            '"final_logit_softcapping": null',
            '"final_logit_softcapping": 30.0',
            "softcapping=30.0 is not",
        ),
        ("config.json", '"attn_logit_softcapping": null', '"attn_logit_softcapping": 50.0', "softcapping=50.0 is not"),
        ("config.json", '"mm_tokens_per_image": 4', '"mm_tokens_per_image": 1', "image_seq_length=4 in the processor"),
        ("config.json", '"image_token_index": 8', '"image_token_index": 6', "image_token_id=8 in the processor's"),
        ("processor_config.json", '"height": 28', '"height": 56', "copy the model again"),
        ("processor_config.json", '"size"', '"do_pan_and_scan": true,\n"size"', "do_pan_and_scan=true in the proc"),
    ],
)
def test_a_model_that_would_be_read_otherwise_is_one_line(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, why: str
) -> None:
    shutil.copytree(folder, tmp_path / "m")
    text = (tmp_path / "m" / file).read_text()
    assert old in text
    (tmp_path / "m" / file).write_text(text.replace(old, new))
    with pytest.raises(SetupError, match=why) as refused:
        load_family(tmp_path / "m")
    assert "\n" not in str(refused.value)


def test_the_family_is_found_by_its_type(folder: Path) -> None:
    assert type(load_family(folder)) is Gemma3
