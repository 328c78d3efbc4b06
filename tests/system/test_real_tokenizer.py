"""The real vLLM with Qwen's tokenizer and 152,000 tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.choices import TAGS
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.rollout.stopping import ANSWER_END
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.scoring.build import build_policy
from ral_system.types import Prompt, Sample, Sampling
from ral_system.weights.manifest import verify_loaded
from tests import chat_templates
from tests.offered import offered
from tests.qwen_tokenizer import qwen_tokenizer
from tests.real_model import build_real_model, check_endings, ending_logits
from tests.system.vllm_setting import CONFIG

# Unit tests ask the same of transformers' engine; vLLM takes 20 s to start with so many tokens.
pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]

ROLLOUT = CONFIG.model_copy(update={"temperature": 1.0, "max_sequences": 64})
HIDDEN = 64
QUESTIONS = ("What is it?", "ما لون النجمة؟", "<image> 𠮷 <image> e\u0301 👩‍👩‍👧?")


class Setting:
    """An engine on a model that says what `check_endings` expects, and the folder of one with random weights."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = qwen_tokenizer(special=TAGS)
        for name, logits in (("ends", ending_logits(self.tokenizer)), ("random", None)):
            build_real_model(folder / name, self.tokenizer, chat_templates.QWEN2_5_VL, hidden=HIDDEN, logits=logits)
        self.media, self.random = MediaStore(folder / "media"), folder / "random"
        from ral_system.rollout.vllm_generator import VllmEngine

        self.engine = VllmEngine(folder / "ends", ROLLOUT, self.media, seed=0, device="cpu")
        self.renderer = ChatRenderer(self.engine._family, "")

    def prompt(self, question: str, pictures: int = 0) -> Prompt:
        picture = self.media.put(Image.effect_noise((84, 56), 60).convert("RGB"))
        return self.renderer.prompt(id=question, kind="", question=question, answer="", media=[picture] * pictures)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment(ROLLOUT, threads=1, device="cpu").items():
            patch.setenv(name, value)
        yield Setting(tmp_path_factory.mktemp("real"))


def test_either_end_of_a_sequence_ends_a_response(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(completions=300, temperature=1.0, max_new_tokens=6, seed=1)
    for stop_text in (None, ANSWER_END):
        monkeypatch.setattr(setting.engine, "_stop_text", stop_text)
        found = list(setting.engine.generate([setting.prompt("What?")], sampling))
        check_endings(found, setting.tokenizer, at_answer=stop_text is not None)


def test_the_policy_gives_what_was_sampled_the_engine_s_log_probs(setting: Setting) -> None:
    policy = build_policy(setting.random, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=1.0)
    weights = offered(1, policy.model.state_dict())
    verify_loaded(weights.manifest, setting.engine.load_weights(weights))
    prompts = {q: setting.prompt(q, q.count("<image>") or at) for at, q in enumerate(QUESTIONS)}
    found = list(setting.engine.generate(list(prompts.values()), Sampling(4, 1.0, 24, seed=3)))
    assert max(token for c in found for token in c.token_ids) > 100_000
    batch = Collator(policy.family, setting.media)(tuple(Sample.of(prompts[c.prompt_id], c, 0.0) for c in found))
    with torch.no_grad():
        packed = policy(batch).log_probs[batch.response_mask]
    difference = np.abs(packed.numpy() - np.concatenate([c.log_probs for c in found])).max()
    print(f"largest log-prob difference {difference:.2e}")
    assert difference <= 1e-4
