"""Qwen3.5 in the real vLLM on CPU, in bfloat16, against transformers: prompt ids, log-probs, weights in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ral_system.errors import SetupError
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_model
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import Completion, Prompt, Sampling, VideoSampling
from ral_system.weights.manifest import verify_loaded
from tests.system.vllm_setting import CONFIG, Setting
from tests.unit.media.clips import clip, noise

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SAMPLING = Sampling(completions=4, temperature=0.8, max_new_tokens=12, seed=11)


@pytest.fixture(scope="module")
def setting(qwen3_5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(CONFIG, threads=1, device="cpu").items():
            patch.setenv(name, value)
        setting = Setting(qwen3_5_folder, tmp_path_factory.mktemp("vllm"), "bfloat16")
        yield setting
        setting.engine.close()


@pytest.fixture(scope="module")
def prompts(setting: Setting) -> list[Prompt]:
    """Ask about pictures, a video, both and neither."""
    first, second = (setting.media.put(Image.fromarray(noise(i, 1, 56, 84 + 28 * i)[0])) for i in range(2))
    video = setting.media.put_video(clip(noise(2, 4, 56, 84)), VideoSampling(1.0, 8, 2), VideoLimits())
    return [
        setting.about("text", "where is the 7 ?", []),
        setting.about("picture", "what is at a1 ?", [first]),
        setting.about("pictures", "what <image> is <image> at a1 ?", [second, first]),
        setting.about("both", "<image> where is the <video> 7 ?", [first, video]),
    ]


class Rounded:
    """A model in bfloat16 that returns float32, as `Setting` asks models."""

    def __init__(self, folder: Path, of: Any) -> None:
        self._rounded = load_model(folder, dtype="bfloat16")
        self._rounded.load_state_dict(of.state_dict())
        self.model = self._rounded.model

    def __call__(self, **inputs: Any) -> Any:
        return self._rounded(**inputs)


def of_transformers(setting: Setting, model: Any, prompts: list[Prompt], found: Mapping[str, Completion]) -> np.ndarray:
    of, own = {prompt.id: prompt for prompt in prompts}, setting.model
    setting.model = model
    try:
        return np.concatenate([setting.log_probs(of[c.prompt_id], c, SAMPLING.temperature) for c in found.values()])
    finally:
        setting.model = own


def check_agreement(setting: Setting, folder: Path, prompts: list[Prompt]) -> dict[str, Completion]:
    """vLLM is as near to transformers in float32 as transformers in bfloat16 is."""
    found = setting.generate(prompts, SAMPLING)  # the engine's prompt ids are ours, or it would raise
    engine = np.concatenate([c.log_probs for c in found.values()])
    exact = of_transformers(setting, setting.model, prompts, found)
    rounded = of_transformers(setting, Rounded(folder, setting.model), prompts, found)
    ours, theirs = np.abs(engine - exact), np.abs(rounded - exact)
    print(
        f"vLLM: mean {ours.mean():.1e}, largest {ours.max():.1e}; transformers: {theirs.mean():.1e}, {theirs.max():.1e}"
    )
    assert len(engine) > 100 and theirs.mean() < 0.02
    assert ours.mean() <= 1.5 * theirs.mean() and ours.max() <= 2 * theirs.max()
    return found


def test_vllm_is_as_near_as_rounding_before_and_after_an_update(
    setting: Setting, qwen3_5_folder: Path, prompts: list[Prompt]
) -> None:
    assert setting.engine._llm.llm_engine.model_config.head_dtype == torch.float32  # not the weights' bfloat16
    before = check_agreement(setting, qwen3_5_folder, prompts)
    picture = {id: replace(c, prompt_id="pictures") for id, c in before.items() if c.prompt_id == "picture"}
    mistaken = of_transformers(setting, setting.model, prompts, picture)
    engine = np.concatenate([c.log_probs for c in picture.values()])
    assert np.abs(engine - mistaken).max() > 0.2  # other prompts make a difference
    weights = setting.perturbed(1)
    held = setting.engine.load_weights(weights)
    verify_loaded(weights.manifest, held)
    assert any("conv1d" in name for name in held.tensors)
    after = check_agreement(setting, qwen3_5_folder, prompts)
    assert sum(after[id].token_ids != before[id].token_ids for id in before) > len(before) / 2


def test_responses_under_way_go_on_from_states_of_the_new_weights(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in (setting.engine, setting.engine._handover):
        monkeypatch.setattr(owner, "_on_new_weights", "continue")
    of, before = {prompt.id: prompt for prompt in setting.prompts}, copy.deepcopy(setting.model)
    found = setting.generate_with_arrival(setting.perturbed(2))
    gaps: dict[str, list[np.ndarray]] = {"own": [], "old": []}
    for completion in (c for c in found.values() if c.switches):
        ((first, _),) = completion.switches
        later = np.array(completion.log_probs)[first:]
        for name, model in (("own", setting.model), ("old", before)):
            one = {completion.id: completion}
            exact = of_transformers(setting, model, [of[completion.prompt_id]], one)[first:]
            gaps[name].append(np.abs(later - exact))
    own, old = (np.concatenate(gaps[name]).mean() for name in ("own", "old"))
    print(f"mean difference to the new weights {own:.1e}, to the old ones {old:.1e}")
    assert own < 0.02 and old > 5 * own


def test_float32_is_refused_on_cpu(setting: Setting, qwen3_5_folder: Path) -> None:
    from ral_system.rollout.vllm_generator import VllmEngine

    with pytest.raises(SetupError) as refused:
        VllmEngine(qwen3_5_folder, CONFIG, setting.media, seed=0, device="cpu")
    assert str(refused.value) == (
        "rollout.dtype=float32: on a CPU vLLM computes linear attention, which the model has, in bfloat16 only; "
        "set it to bfloat16, or choose rollout=hf"
    )
