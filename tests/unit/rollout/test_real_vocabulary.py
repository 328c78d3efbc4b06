"""A vocabulary of 152,000 tokens from the rollout to the update, with Qwen's tokenizer and template."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from ral_system.attention.read import AttentionRead
from ral_system.attention.visual_reward import response_visual_rewards
from ral_system.batches.collate import Collator
from ral_system.config.choices import TAGS
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.rollout.hf_generator import HfEngine
from ral_system.scoring.build import build_policy
from ral_system.training.learner_rank import LearnerRank
from ral_system.types import Completion, Prompt, Sample, Sampling
from tests import chat_templates
from tests.qwen_tokenizer import qwen_tokenizer
from tests.real_model import END_OF_TEXT, VOCABULARY, build_real_model, check_endings, ending_logits
from tests.unit.training.learners import plan

HIDDEN = 32
ROLLOUT = (
    "rollout.temperature=1",
    "rollout.max_new_tokens=24",
    "rollout.max_model_len=256",
    "rollout.max_sequences=64",
)
QUESTIONS = ("What is it?", "ما لون النجمة؟", "<image> 𠮷 <image> 👩‍👩‍👧?")


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return qwen_tokenizer()


class Real:
    """A model of random weights, questions, and what it says to them."""

    def __init__(self, folder: Path, qwen: PreTrainedTokenizerFast, media: MediaStore, rollout: Any) -> None:
        self.folder, self.media = folder, media
        build_real_model(folder, qwen, chat_templates.QWEN2_5_VL, hidden=HIDDEN)
        self.policy = build_policy(folder, torch.device("cpu"), AttentionRead(), dtype="float32", temperature=1.0)
        self.family = self.policy.family
        self.renderer, self.collate = ChatRenderer(self.family, ""), Collator(self.family, media)
        picture = media.put(Image.effect_noise((84, 56), 60).convert("RGB"))
        self.prompts: dict[str, Prompt] = {}
        for index, question in enumerate(QUESTIONS):
            pictures = [picture] * (question.count("<image>") or 1 - index)
            id = f"train/{index}"
            self.prompts[id] = self.renderer.prompt(id=id, kind="", question=question, answer="B", media=pictures)
        engine = HfEngine(folder, rollout, media, seed=0)
        sampling = Sampling(completions=2, temperature=1.0, max_new_tokens=24, seed=3)
        self.completions: list[Completion] = list(engine.generate(list(self.prompts.values()), sampling))

    def scored(self, sample: Sample) -> Sample:
        with torch.no_grad():
            return replace(sample, rollout_log_probs=tuple(self.policy(self.collate((sample,))).log_probs[0].tolist()))

    def samples(self) -> list[Sample]:
        """Return what was said; a whole answer; a response of one token, which is empty."""
        said = [Sample.of(self.prompts[c.prompt_id], c, 1.0 - 0.5 * i) for i, c in enumerate(self.completions)]
        answer = self.renderer.response("<think>It is 龘.</think>\n<answer>B</answer>")
        prompt = self.prompts["train/0"]
        given = [(answer, 0.7), ((END_OF_TEXT,), -1.0)]
        return said + [
            self.scored(Sample(f"train/0#{2 + i}", prompt, ids, advantage=advantage, index=2 + i))
            for i, (ids, advantage) in enumerate(given)
        ]


@pytest.fixture(scope="module")
def real(
    qwen: PreTrainedTokenizerFast, media: MediaStore, make_config: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Real:
    return Real(tmp_path_factory.mktemp("real"), qwen, media, make_config(*ROLLOUT).rollout)


def test_the_policy_gives_what_was_sampled_the_engine_s_log_probs(real: Real) -> None:
    assert len({c.token_ids for c in real.completions}) == 2 * len(QUESTIONS)
    assert max(token for c in real.completions for token in c.token_ids) > 100_000
    samples = tuple(Sample.of(real.prompts[c.prompt_id], c, 0.0) for c in real.completions)
    batch = real.collate(samples)
    with torch.no_grad():
        packed = real.policy(batch).log_probs[batch.response_mask]
    rollout = np.concatenate([c.log_probs for c in real.completions])
    assert np.abs(packed.numpy() - rollout).max() <= 1e-5


def test_the_template_s_own_system_turn_makes_the_visual_reward(real: Real) -> None:
    sample = real.samples()[0]
    assert sample.prompt.system_tokens > 0 and sample.prompt.media
    batch = real.collate((sample,))
    read = AttentionRead()
    (attention,) = real.policy(batch, reads=(read,)).attention[read]
    (share,) = response_visual_rewards(attention, batch.keys, "share")
    assert share is not None and 0 < share < 1


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def test_an_update_needs_no_logits_of_all_tokens(real: Real, make_config: Callable) -> None:
    config = make_config(
        *ROLLOUT,
        *("algorithm.attention.rows=answer", "algorithm.attention.weight=1", "learner.warmup_updates=0"),
        *("learner.learning_rate=1e-3", "algorithm.kl.coefficient=0"),
    )
    samples = real.samples()
    split = plan(samples, 1, len(samples))
    rank = LearnerRank(config, real.folder, real.media, rank=0, world_size=1, stage="rl")
    before = rank.score(split)
    with Largest() as largest:
        metrics = rank.update(split.updates[0], before, None)
    tokens = sum(len(s.response_token_ids) for s in samples)
    assert largest.elements <= VOCABULARY * HIDDEN < VOCABULARY * tokens / 3
    assert metrics["learner/grad_norm"] > 0 and np.isfinite(metrics["learner/grad_norm"])
    after = rank._engine.policy(real.collate(tuple(samples)))
    old = np.concatenate([before[s.id].log_probs for s in samples])
    gained = after.log_probs[after_mask(real, samples)].detach().numpy() - old
    advantages = np.concatenate([[s.advantage] * len(s.response_token_ids) for s in samples])
    assert (gained * advantages).sum() > 0


def after_mask(real: Real, samples: list[Sample]) -> torch.Tensor:
    return real.collate(tuple(samples)).response_mask


@pytest.mark.long  # `make test` has it with vLLM
def test_either_end_of_a_sequence_ends_a_response(media: MediaStore, make_config: Callable, tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer(special=TAGS)
    build_real_model(tmp_path, tokenizer, chat_templates.QWEN2_5_VL, hidden=HIDDEN, logits=ending_logits(tokenizer))
    sampling = Sampling(completions=250, temperature=1.0, max_new_tokens=6, seed=1)
    engine = HfEngine(tmp_path, make_config(*ROLLOUT).rollout, media, seed=0)
    prompt = ChatRenderer(engine._family, "").prompt(id="p", kind="", question="What?", answer="", media=[])
    for at_answer in (False, True):
        engine._config = engine._config.model_copy(update={"stop_at_answer": at_answer})
        check_endings(list(engine.generate([prompt], sampling)), tokenizer, at_answer=at_answer)
