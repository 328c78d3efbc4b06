"""The real vLLM against transformers, on the tiny model. One engine serves all tests; they run in order."""

import copy
import gc
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ral_system.errors import GateError, WeightSyncError
from ral_system.media.blinding import MaskedMedia
from ral_system.media.videos import VideoLimits
from ral_system.rollout.stopping import ANSWER_END
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words
from ral_system.types import Held, Sampling, VideoSampling, WeightManifest
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.object_store import Arrays
from tests.offered import offered
from tests.system.vllm_setting import CONFIG, SAMPLING, Setting
from tests.unit.media.clips import clip, noise
from tests.unit.rollout.stopped import check_stopped

pytestmark = pytest.mark.system


def tiny_setting(folder: Path) -> Setting:
    """Write a tiny Qwen2.5-VL to the folder."""
    build_tiny_model(folder / "model", words(), hidden=128, layers=4, vision_layers=2, seed=1)
    return Setting(folder / "model", folder)


def take_under_way(setting: Setting, monkeypatch: pytest.MonkeyPatch, on_new_weights: str) -> None:
    for owner in (setting.engine, setting.engine._handover):
        monkeypatch.setattr(owner, "_on_new_weights", on_new_weights)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(CONFIG, threads=1, device="cpu").items():
            patch.setenv(name, value)
        yield tiny_setting(tmp_path_factory.mktemp("vllm"))


def test_log_probs_are_those_of_transformers(setting: Setting) -> None:
    found = setting.generate()
    difference = setting.largest_difference(found, SAMPLING.temperature)
    print(f"largest log-prob difference {difference:.2e}")
    assert difference <= 1e-4
    assert {c.weight_version for c in found.values()} == {0}
    assert {c.finish_reason for c in found.values()} >= {"length"}


def test_videos_are_those_of_transformers_at_their_own_rates(setting: Setting) -> None:
    """One and several, beside pictures, and the same pixels at two rates, which the engine's caches must tell apart."""
    sampling = VideoSampling(fps=1.0, max_frames=8, min_frames=2)
    (picture,) = setting.prompts[0].media
    one = setting.media.put_video(clip(noise(1, 8, 56, 84)), sampling, VideoLimits())
    two = setting.media.put_video(clip(noise(2, 4, 84, 56)), sampling, VideoLimits())
    assert one.clip is not None
    slow = replace(one, clip=replace(one.clip, duration_s=11.0))
    prompts = [
        setting.about("one", "what is at a1 ?", [one]),
        setting.about("slow", "what is at a1 ?", [slow]),
        setting.about("two", "<video> where is the <video> 7 ?", [one, two]),
        setting.about("both", "<image> where is the <video> 7 ?", [picture, two]),
        setting.about("other way", "<video> where is the <image> 7 ?", [slow, picture]),
        setting.about("text", "where is the 7 ?", []),
    ]
    found = setting.generate(prompts)
    assert setting.largest_difference(found, SAMPLING.temperature, prompts) <= 1e-4
    again = setting.generate(prompts[::-1])  # from the engine's caches
    assert setting.largest_difference(again, SAMPLING.temperature, prompts) <= 1e-4
    wrong = setting.about("one", "what is at a1 ?", [slow])
    assert (
        max(
            np.abs(setting.log_probs(wrong, c, SAMPLING.temperature) - np.array(c.log_probs)).max()
            for c in found.values()
            if c.prompt_id == "one"
        )
        > 1e-2
    )  # so that a wrong rate would have been seen


def test_a_picture_with_black_parts_is_not_taken_for_the_whole_one(setting: Setting) -> None:
    """They are one file of one size, which the engine's caches must tell apart."""
    (whole,) = setting.prompts[0].media
    (view,) = setting.family.layout(whole).views
    black = np.arange(view.rows * view.columns).reshape(1, view.rows, view.columns) % 2 == 0
    parts = [MaskedMedia.of(whole, mask, frames_per_view=2) for mask in (black, ~black)]
    prompts = [setting.about(str(i), "what is at a1 ?", [medium]) for i, medium in enumerate([whole, *parts])]
    found = setting.generate(prompts)
    assert setting.largest_difference(found, SAMPLING.temperature, prompts) <= 1e-4
    mistaken = [prompts[0], replace(prompts[0], id="1"), replace(prompts[0], id="2")]
    assert setting.largest_difference(found, SAMPLING.temperature, mistaken) > 1e-2


def test_prompts_whose_tokens_do_not_fit_their_media_are_refused(setting: Setting) -> None:
    prompt = setting.prompts[0]
    with pytest.raises(GateError, match="prompt train/0 has 9 image tokens, but its media make none"):
        setting.generate([replace(prompt, media=())])
    with pytest.raises(ValueError, match="prompt many: 17 images; at most 16 are supported"):
        setting.about("many", "what ?", [*prompt.media] * 17)
    setting.generate([setting.about("as many as may be", "what ?", [*prompt.media] * 16)])


@pytest.mark.parametrize("count", [1, 20])
def test_the_most_likely_tokens_are_reported_on_request(setting: Setting, count: int) -> None:
    plain = setting.generate()
    found = setting.generate(sampling=replace(SAMPLING, top_tokens=count))
    assert {id: c.token_ids for id, c in found.items()} == {id: c.token_ids for id, c in plain.items()}
    assert all(c.top is not None and c.top.ids is not None and c.top.ids.shape[1] == count for c in found.values())
    assert setting.largest_difference(found, SAMPLING.temperature) <= 1e-4


def test_a_response_ends_at_its_answer_on_request(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = replace(SAMPLING, completions=6, max_new_tokens=80)
    plain = setting.generate(sampling=sampling)
    monkeypatch.setattr(setting.engine, "_stop_text", ANSWER_END)
    check_stopped(plain, setting.generate(sampling=sampling), setting.processor.tokenizer)


def test_a_completion_depends_on_its_own_seed_alone(setting: Setting) -> None:
    together = setting.generate()
    alone = setting.generate([setting.prompts[4]], replace(SAMPLING, completions=2))
    for id, completion in alone.items():
        assert completion.token_ids == together[id].token_ids
        assert np.allclose(completion.log_probs, together[id].log_probs, atol=1e-5)
    other = setting.generate(sampling=replace(SAMPLING, seed=12))
    assert all(other[id].token_ids != together[id].token_ids for id in together)
    assert len({c.token_ids for c in together.values()}) == len(together)


def test_greedy_has_log_probs_at_temperature_one(setting: Setting) -> None:
    sampling = replace(SAMPLING, completions=1, temperature=0.0)
    found = setting.generate(sampling=sampling)
    assert setting.largest_difference(found, 1.0) <= 1e-4
    assert setting.generate(sampling=sampling) == found


def test_tampered_prompts_are_refused(setting: Setting) -> None:
    prompt = setting.prompts[0]
    image = setting.processor.image_token_id
    at = prompt.token_ids.index(image)
    shorter = replace(prompt, id="tampered", token_ids=prompt.token_ids[:at] + prompt.token_ids[at + 1 :])
    with pytest.raises(GateError, match="prompt tampered has 8 image tokens, but its media make 9"):
        setting.generate([shorter])
    without = replace(prompt, id="bare", token_ids=tuple(t for t in prompt.token_ids if t != image))
    with pytest.raises(GateError, match="prompt bare has none, but its media make 9 image tokens"):
        setting.generate([without])
    setting.generate()  # nothing of the refused requests is left running


def test_an_abandoned_generation_leaves_the_engine_usable(setting: Setting) -> None:
    stream = setting.engine.generate(setting.prompts, SAMPLING)
    next(iter(stream))
    with pytest.raises(WeightSyncError, match="is generating"):
        setting.engine.load_weights(offered(1, {}))
    stream.close()
    setting.generate()


def test_loaded_weights_are_read_back_and_used(setting: Setting) -> None:
    before = setting.generate()
    for version in (1, 2):
        weights = setting.perturbed(version)
        started = time.perf_counter()
        loaded = setting.engine.load_weights(weights)
        print(f"load and read back {len(loaded.tensors)} tensors: {time.perf_counter() - started:.2f} s")
        verify_loaded(weights.manifest, loaded)
        after = setting.generate()  # the same images: nothing encoded with the old weights may be left
        assert {c.weight_version for c in after.values()} == {version}
        assert sum(after[id].token_ids != before[id].token_ids for id in before) > len(before) / 2
        assert setting.largest_difference(after, SAMPLING.temperature) <= 1e-4
        before = after


def test_a_response_goes_on_with_the_new_weights_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    old, old_weights = copy.deepcopy(setting.model), offered(8, setting.model.state_dict())
    setting.engine.load_weights(old_weights)
    before = setting.generate()
    take_under_way(setting, monkeypatch, "continue")
    unchanged = setting.generate_with_arrival(old_weights)
    assert {id: c.token_ids for id, c in unchanged.items()} == {id: c.token_ids for id, c in before.items()}

    found = setting.generate_with_arrival(setting.perturbed(9))
    switched = {id: c for id, c in found.items() if c.switches}
    assert switched and all(c.weight_version == 8 and c.switches[0][1] == 9 for c in switched.values())
    assert any(c.token_ids != before[id].token_ids for id, c in switched.items())
    prompts, new = {p.id: p for p in setting.prompts}, setting.model
    for id, completion in switched.items():
        ((first, _),) = completion.switches
        assert completion.token_ids[:first] == before[id].token_ids[:first]
        for setting.model, part in ((old, slice(0, first)), (new, slice(first, None))):
            scored = setting.log_probs(prompts[completion.prompt_id], completion, SAMPLING.temperature)
            assert np.abs(scored[part] - np.array(completion.log_probs)[part]).max() <= 1e-4, id


def test_a_response_is_begun_again_with_the_new_weights(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.engine.load_weights(offered(9, setting.model.state_dict()))
    take_under_way(setting, monkeypatch, "discard")
    found = setting.generate_with_arrival(setting.perturbed(10))
    again = setting.generate()
    restarted = {id: c for id, c in found.items() if c.restarts}
    assert len(restarted) > len(found) / 2
    for id, completion in restarted.items():
        assert completion.restarts == 1 and completion.weight_version == 10
        assert completion.token_ids == again[id].token_ids and completion.seed == again[id].seed != 0
    assert all(c.weight_version == 9 for id, c in found.items() if id not in restarted)


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.blocks.0.attn.qkv.weight",
        "model.visual.blocks.1.mlp.up_proj.bias",
        "model.language_model.layers.2.self_attn.v_proj.weight",
        "model.language_model.layers.0.mlp.gate_proj.weight",
        "model.language_model.norm.weight",
        "model.language_model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_corrupted_tensor_is_named(setting: Setting, name: str) -> None:
    weights = setting.perturbed(3)
    array = weights.arrays[name].copy()
    array.flat[array.size // 2] += 1e-6
    loaded = setting.engine.load_weights(replace(weights, arrays={**weights.arrays, name: array}))
    with pytest.raises(WeightSyncError, match=f"1 different: {name} "):
        verify_loaded(weights.manifest, loaded)


def test_missing_and_unknown_tensors_are_named(setting: Setting) -> None:
    weights = setting.perturbed(4)
    arrays = {name: array for name, array in weights.arrays.items() if "layers.1.self_attn" not in name}
    known = WeightManifest(4, {name: weights.manifest.tensors[name] for name in arrays})
    loaded = setting.engine.load_weights(Arrays(known, arrays))
    with pytest.raises(
        WeightSyncError, match=r"missing: model.language_model.layers.1.*unexpected: engine:language_model"
    ):
        verify_loaded(weights.manifest, loaded)
    setting.engine.load_weights(weights)


@pytest.mark.timeout(150)  # one that sleeps would generate for ever
def test_an_engine_wakes_in_two_steps_and_refuses_to_work_before(setting: Setting) -> None:
    """vLLM itself only warns of a call that it does not carry out, and on CPU keeps its memory all the time."""
    engine, weights = setting.engine, setting.perturbed(5)
    verify_loaded(weights.manifest, engine.load_weights(weights))
    expected = {id: c.token_ids for id, c in setting.generate().items()}

    def refused(work: str) -> AbstractContextManager[object]:
        return pytest.raises(GateError, match=f"a rollout engine was asked to {work} while it holds ")

    for held in (Held.WEIGHTS, Held.ALL):
        with refused(f"hold {held.words}"):
            engine.hold(held)
    for _ in range(2):
        engine.hold(Held.NOTHING)
        for held in (Held.NOTHING, Held.ALL):
            with refused(f"hold {held.words}"):
                engine.hold(held)
        with refused("generate"):
            setting.generate()
        with refused("load weights"):
            engine.load_weights(weights)
        with refused("read its weights"):
            engine.held(weights.manifest)
        engine.hold(Held.WEIGHTS)
        with refused("generate"):
            setting.generate()
    verify_loaded(weights.manifest, engine.load_weights(weights))
    engine.hold(Held.ALL)
    assert {id: c.token_ids for id, c in setting.generate().items()} == expected


def test_throughput(setting: Setting) -> None:
    started = time.perf_counter()
    found = setting.generate(sampling=replace(SAMPLING, completions=16, max_new_tokens=48))
    tokens = sum(len(c.token_ids) for c in found.values())
    elapsed = time.perf_counter() - started
    assert all(0 < c.first_token_s < elapsed for c in found.values())
    print(
        f"{tokens} tokens in {elapsed:.2f} s: {tokens / elapsed:.0f} tokens/s ({os.environ['OMP_NUM_THREADS']} thread)"
    )


def test_more_prompts_than_fit_a_step_are_those_of_transformers(setting: Setting) -> None:
    """On CPU none is cut in two: vLLM 0.32 would take back the first part's random number, and torch cannot."""
    boards = VisualSearch(seed=0, grid=8, objects=20)
    prompts = []
    for index in range(40):
        record = boards.record("train", index)
        prompts.append(setting.about(f"long/{index}", record.caption_question, [setting.media.put(record.image)]))
    assert sum(len(p.token_ids) for p in prompts[:32]) > 4096
    sampling = Sampling(completions=1, temperature=0.8, max_new_tokens=4, seed=1)
    found = setting.generate(prompts, sampling)
    assert setting.largest_difference(found, 0.8, prompts) <= 1e-3  # rounding grows with the length


def test_a_closed_engine_makes_room_for_the_next(setting: Setting, tmp_path: Path) -> None:
    """The last of this file: it ends the engine that the others share."""
    held = weakref.ref(setting.engine._llm)
    setting.engine.close()
    gc.collect()
    assert held() is None
    following = tiny_setting(tmp_path)
    assert following.largest_difference(following.generate(), SAMPLING.temperature) <= 1e-4
