"""Qwen3-VL and GLM-4.1V in the real vLLM against transformers: prompt ids, log-probs, weights replaced in place."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ral_system.media.videos import VideoLimits
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import Prompt, VideoSampling
from ral_system.weights.manifest import verify_loaded
from tests.system.vllm_setting import CONFIG, SAMPLING, Setting
from tests.unit.media.clips import clip, noise

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["qwen3_vl", "glm4v"])
def setting(
    request: pytest.FixtureRequest, qwen3_folder: Path, glm4v_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setting]:
    model = {"qwen3_vl": qwen3_folder, "glm4v": glm4v_folder}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(CONFIG, threads=1, device="cpu").items():
            patch.setenv(name, value)
        setting = Setting(model, tmp_path_factory.mktemp("vllm"))
        yield setting
        setting.engine.close()


def questions(setting: Setting) -> list[Prompt]:
    """Ask about one, several and no pictures and videos; two videos differ only in their times."""
    sampling = VideoSampling(fps=1.0, max_frames=6, min_frames=2)
    (first,), (second,) = setting.prompts[0].media, setting.prompts[1].media
    wide = setting.media.put_video(clip(noise(1, 6, 56, 84)), sampling, VideoLimits())
    tall = setting.media.put_video(clip(noise(2, 4, 84, 56)), sampling, VideoLimits())
    assert wide.clip is not None
    uneven = replace(wide, clip=replace(wide.clip, times_s=(0.0, 0.9, 2.3, 3.0, 10.6, 12.75)))
    found = [
        setting.about("picture", "what is at a1 ?", [first]),
        setting.about("pictures", "what <image> is <image> at a1 ?", [second, first]),
        setting.about("video", "what is at a1 ?", [wide]),
        setting.about("uneven", "what is at a1 ?", [uneven]),
        setting.about("both", "<image> where is the <video> 7 ?", [first, tall]),
        setting.about("other way", "<video> where is the <image> 7 ?", [tall, second]),
        setting.about("text", "where is the 7 ?", []),
    ]
    if setting.family.max_media["video"] > 1:
        found.append(setting.about("videos", "<video> where is the <video> 7 ?", [wide, tall]))
    return found


def test_log_probs_are_those_of_transformers_before_and_after_an_update(setting: Setting) -> None:
    prompts, sampling = questions(setting), replace(SAMPLING, completions=2, max_new_tokens=8)
    before = setting.generate(prompts, sampling)  # the engine's prompt ids are ours, or it would raise
    assert setting.largest_difference(before, SAMPLING.temperature, prompts) <= 1e-4
    weights = setting.perturbed(1)
    held = setting.engine.load_weights(weights)
    verify_loaded(weights.manifest, held)
    after = setting.generate(prompts, sampling)
    difference = setting.largest_difference(after, SAMPLING.temperature, prompts)
    print(f"largest log-prob difference {difference:.2e}; {len(held.tensors)} tensors read back")
    assert difference <= 1e-4
    assert sum(after[id].token_ids != before[id].token_ids for id in before) > len(before) / 2


def test_several_videos_are_refused_where_the_engine_takes_one(setting: Setting) -> None:
    video = setting.media.put_video(clip(noise(2, 4, 84, 56)), VideoSampling(1.0, 4, 2), VideoLimits())
    most = setting.family.max_media["video"]
    with pytest.raises(ValueError, match=rf"^prompt many: {most + 1} videos; at most {most} are supported$"):
        setting.about("many", "what ?", [video] * (most + 1))
