"""Gemma 3 in the real vLLM on a CPU: refused, and what it computes otherwise is attention within pictures alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from ral_system.errors import SetupError
from ral_system.families.gemma3 import Gemma3
from ral_system.models.named_weights import named_weights
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.tasks.visual_search import words
from ral_system.types import Completion, Prompt
from ral_system.weights.manifest import verify_loaded
from tests.gemma3_model import build_gemma3
from tests.offered import offered
from tests.system.vllm_setting import CONFIG, SAMPLING, Setting
from tests.unit.families.of_transformers import Bench

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


class Gemma(Setting):
    """Log-probs as transformers has them by the processor's inputs."""

    bench: Bench
    both_ways = True
    """Whether transformers is told where pictures are."""

    @torch.no_grad()
    def log_probs(self, prompt: Prompt, completion: Completion, temperature: float) -> np.ndarray:
        response = torch.tensor([completion.token_ids])
        inputs = {name: v for name, v in self.bench.processed(prompt).items() if name != "attention_mask"}
        inputs["input_ids"] = torch.cat([inputs["input_ids"], response], dim=1)
        inputs["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, response.shape[1]))
        if not self.both_ways:
            del inputs["token_type_ids"]
        logits = self.model(**inputs).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
        logits[:, list(self.banned)] = -torch.inf
        return logits.log_softmax(-1).gather(-1, response.T)[:, 0].numpy()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gemma]:
    folder = tmp_path_factory.mktemp("gemma3")
    build_gemma3(folder / "model", words())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(CONFIG, threads=1, device="cpu").items():
            patch.setenv(name, value)
        with pytest.raises(SetupError, match=r"rollout\.engine=vllm on a CPU: its attention is causal within pictures"):
            Gemma(folder / "model", folder)
        patch.setattr(Gemma3, "engine_problem", lambda self, device, dtype: None)
        setting = Gemma(folder / "model", folder)
        setting.bench = Bench(folder / "model", setting.media, [(84, 56), (28, 28), (61, 100)])
        yield setting
        setting.engine.close()


def test_newlines_that_vllm_merges_otherwise_are_refused(setting: Gemma) -> None:
    """The template's own two newlines stand before what a question begins with; the picture brings two on either side,
    and none more than once can merge with them. It loses a picture with one newline behind it.
    """
    media = [setting.bench.picture(i, 28, 28) for i in range(2)]
    first, inside = ["\n" * n + "<image>what" for n in range(2)], ["what" + "\n" * n + "<image>what" for n in range(5)]
    assert setting.check_expansions([*first, *inside], media[:1]) == [True, False, True, True, True, False, False]
    behind = ["what<image>" + "\n" * n + "what" for n in range(5)]
    assert setting.check_expansions([*behind, "<image>\n"], media[:1]) == [True, False, True, False, False, False]
    between = [f"<image>{text}<image>" for text in ("", "\n", "\n\n", " ", "what")]
    assert setting.check_expansions(between, media) == [True, False, False, True, True]


def test_all_but_attention_within_pictures_is_that_of_transformers(setting: Gemma) -> None:
    """Prompt ids (or generation raises), windows, names, and the head, which is the new embedding after an update."""
    prompts, sampling = setting.bench.prompts, replace(SAMPLING, completions=2, max_new_tokens=8)
    before = setting.generate(prompts, sampling)
    assert setting.largest_difference(before, SAMPLING.temperature, prompts) > 1e-3  # why the engine is refused
    setting.both_ways = False
    assert setting.largest_difference(before, SAMPLING.temperature, prompts) <= 1e-4
    setting.perturbed(1)
    weights = offered(1, named_weights(setting.model))  # what a learner publishes
    assert "lm_head.weight" not in weights.manifest.tensors
    verify_loaded(weights.manifest, setting.engine.load_weights(weights))
    after = setting.generate(prompts, sampling)
    assert setting.largest_difference(after, SAMPLING.temperature, prompts) <= 1e-4
    assert sum(after[id].token_ids != before[id].token_ids for id in before) > len(before) / 2
