import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.config.rollout import HfRolloutConfig, LogProbGateConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import DataError, GateError, WeightSyncError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.rollout.hf_generator import HfEngine
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words
from ral_system.types import Completion, FinishReason, Piece, Prompt, Sampling
from ral_system.weights.manifest import verify_loaded
from tests.offered import offered
from tests.unit.rollout.stopped import check_stopped
from tests.unit.rollout.top_tokens import check_top_tokens

CONFIG = HfRolloutConfig(
    engine="hf",
    workers=1,
    temperature=0.8,
    max_new_tokens=12,
    stop_at_answer=False,
    max_model_len=64,
    max_sequences=8,
    dtype="float32",
    weight_transfer=None,
    weight_timeout_s=60.0,
    on_new_weights="finish",
    log_prob_gate=LogProbGateConfig(token=1e-4, outliers=0.0, mean=None, p999=None),
)
SAMPLING = Sampling(completions=3, temperature=0.8, max_new_tokens=12, seed=5)


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model"
        build_tiny_model(self.folder, words(), hidden=64, layers=2, vision_layers=1, seed=3)
        self.media = MediaStore(folder / "media")
        family = load_family(self.folder)
        self.processor, self.banned = family.processor, family.banned_ids
        self.model = load_model(self.folder, dtype="float32")
        renderer = ChatRenderer(family, "answer")
        self.prompts = []
        for index, grid in enumerate((2, 3, 2, 3)):  # several sizes, so batches are padded
            record = VisualSearch(seed=0, grid=grid, objects=3).record("train", index)
            image = (self.media.put(record.image),)
            prompt = renderer.prompt(id=f"p{index}", kind="", question=record.question, answer="", media=image)
            self.prompts.append(prompt)
        self.prompts.append(renderer.prompt(id="text", kind="", question="what is there ?", answer="", media=()))
        self.engine = self.new_engine()

    def new_engine(self, **changes: int) -> HfEngine:
        return HfEngine(self.folder, CONFIG.model_copy(update=changes), self.media, seed=0)

    def generate(self, prompts: list[Prompt] | None = None, sampling: Sampling = SAMPLING) -> dict[str, Completion]:
        return {c.id: c for c in self.engine.generate(prompts or self.prompts, sampling)}

    @torch.no_grad()
    def log_probs(self, prompt: Prompt, completion: Completion, temperature: float) -> np.ndarray:
        """The naive reference: one unpadded, uncached forward pass of the whole sequence."""
        images = [self.media.open(media) for media in prompt.media]
        features = self.processor.image_processor(images=images, return_tensors="pt") if images else {}
        ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
        if images:
            features["mm_token_type_ids"] = (ids == self.processor.image_token_id).long()
        log_softmax_RV = self.model(input_ids=ids, **features).logits[0, len(prompt.token_ids) - 1 : -1] / temperature
        log_softmax_RV[:, list(self.banned)] = -torch.inf
        log_softmax_RV = log_softmax_RV.log_softmax(-1)
        check_top_tokens(completion, log_softmax_RV)
        return log_softmax_RV.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0].numpy()

    def check_parity(self, found: dict[str, Completion], temperature: float) -> None:
        for completion in found.values():
            prompt = next(p for p in self.prompts if p.id == completion.prompt_id)
            expected = self.log_probs(prompt, completion, temperature)
            assert np.abs(expected - np.array(completion.log_probs)).max() <= 1e-5, completion.id


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("hf"))


def test_log_probs_are_those_of_a_teacher_forced_pass(setting: Setting) -> None:
    found = setting.generate()
    assert found.keys() == {f"{p.id}#{i}" for p in setting.prompts for i in range(3)}
    assert len({c.token_ids for c in found.values()}) == len(found)
    setting.check_parity(found, 0.8)


def test_repeats_bitwise_and_follows_the_seed(setting: Setting) -> None:
    found = setting.generate()
    assert setting.generate() == found
    other = setting.generate(sampling=replace(SAMPLING, seed=6))
    assert all(other[id].token_ids != found[id].token_ids for id in found)


def test_neighbours_and_padding_do_not_matter(setting: Setting) -> None:
    together = setting.generate()
    for prompt in setting.prompts:
        for id, alone in setting.generate([prompt], replace(SAMPLING, completions=1)).items():
            assert alone.token_ids == together[id].token_ids
            assert np.allclose(alone.log_probs, together[id].log_probs, atol=1e-4)


def test_pieces_of_a_group_are_those_of_the_group(setting: Setting) -> None:
    """As engines that share a group make them."""
    first, second = setting.prompts[:2]
    together = setting.generate([first, second])
    pieces = [Piece(second, 1, 2), Piece(first, 2, 1)]
    found = list(setting.engine.generate_pieces(pieces, SAMPLING))
    assert {c.id for c in found} == {"p1#1", "p1#2", "p0#2"}
    for completion in found:
        assert completion.token_ids == together[completion.id].token_ids
        assert np.allclose(completion.log_probs, together[completion.id].log_probs, atol=1e-4)


def test_a_tokenizer_need_not_have_a_token_for_padding(setting: Setting) -> None:
    engine = setting.new_engine()
    engine._family.tokenizer.pad_token = None
    assert {c.id: c for c in engine.generate(setting.prompts, SAMPLING)} == setting.generate()


def test_sampling_follows_the_distribution(setting: Setting) -> None:
    prompt = setting.prompts[0]
    sampling = Sampling(completions=1200, temperature=0.5, max_new_tokens=1, seed=0)
    engine = setting.new_engine(max_sequences=400)
    tokens = [c.token_ids[0] for c in engine.generate([prompt], sampling)]
    found = np.bincount(tokens, minlength=len(setting.processor.tokenizer)) / len(tokens)
    allowed = [token for token in range(len(found)) if token not in setting.banned]
    expected = np.exp([setting.log_probs(prompt, _of(prompt, token), 0.5).item() for token in allowed])
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(found[allowed] - expected).max() < 4 * np.sqrt(expected.max() / len(tokens))
    assert not set(tokens) & set(setting.banned)


def test_greedy_takes_the_best_token_and_reports_temperature_one(setting: Setting) -> None:
    found = setting.generate(sampling=replace(SAMPLING, completions=1, temperature=0.0))
    setting.check_parity(found, 1.0)


def test_the_first_token_is_timed_with_the_wait_before_it(setting: Setting) -> None:
    engine, began = setting.new_engine(max_sequences=1), time.perf_counter()
    first, second = engine.generate(setting.prompts[:1], replace(SAMPLING, completions=2))
    assert 0 < first.first_token_s < second.first_token_s < time.perf_counter() - began


def test_a_response_ends_at_its_stop_token_or_at_the_limit(setting: Setting) -> None:
    found = setting.generate(sampling=replace(SAMPLING, completions=40, temperature=1.0))
    stop = setting.processor.tokenizer.eos_token_id
    reasons = {c.finish_reason for c in found.values()}
    assert reasons == {"stop", "length"}
    for completion in found.values():
        assert (completion.token_ids[-1] == stop) == (completion.finish_reason == "stop")
        assert stop not in completion.token_ids[:-1]
        assert "<|im_end|>" not in completion.text
    setting.check_parity(found, 1.0)
    short = setting.new_engine(max_model_len=len(setting.prompts[1].token_ids) + 2)
    assert {len(c.token_ids) for c in short.generate(setting.prompts[1:2], SAMPLING)} <= {1, 2}


def test_loaded_weights_are_used_and_read_back(setting: Setting) -> None:
    before = setting.generate()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in setting.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = offered(4, dict(setting.model.named_parameters()))
    verify_loaded(weights.manifest, setting.engine.load_weights(weights))
    after = setting.generate()
    assert {c.weight_version for c in after.values()} == {4}
    assert any(after[id].token_ids != before[id].token_ids for id in before)
    setting.check_parity(after, 0.8)


def test_missing_and_damaged_weights_are_found(setting: Setting) -> None:
    parameters = dict(setting.model.named_parameters())
    less = offered(5, {name: p for name, p in parameters.items() if name != "lm_head.weight"})
    with pytest.raises(WeightSyncError, match=r"1 unexpected: engine:lm_head.weight"):
        verify_loaded(less.manifest, setting.engine.load_weights(less))
    whole = offered(5, parameters)
    damaged = {**whole.arrays, "lm_head.weight": whole.arrays["lm_head.weight"] + np.float32(1)}
    with pytest.raises(WeightSyncError, match=r"1 different: lm_head.weight"):
        verify_loaded(whole.manifest, setting.engine.load_weights(replace(whole, arrays=damaged)))
    setting.engine.load_weights(whole)


def test_prompts_that_do_not_fit_are_refused(setting: Setting) -> None:
    prompt = setting.prompts[0]
    at = prompt.token_ids.index(setting.processor.image_token_id)
    shorter = replace(prompt, token_ids=prompt.token_ids[:at] + prompt.token_ids[at + 1 :])
    with pytest.raises(GateError, match="prompt p0 has 3 image tokens, but its media make 4"):
        setting.generate([shorter])
    with pytest.raises(DataError, match=r"prompt p0: 64 tokens leave no room .* rollout.max_model_len=64"):
        setting.generate([replace(prompt, token_ids=(1,) * 64)])


def _of(prompt: Prompt, token: int) -> Completion:
    return Completion(prompt.id, 0, (token,), (0.0,), "", FinishReason.LENGTH, 0)


@pytest.mark.parametrize("count", [1, 5])
def test_the_most_likely_tokens_are_reported_on_request(setting: Setting, count: int) -> None:
    plain = setting.generate()
    found = setting.generate(sampling=replace(SAMPLING, top_tokens=count))
    assert {id: c.token_ids for id, c in found.items()} == {id: c.token_ids for id, c in plain.items()}
    assert all(c.top is None for c in plain.values())
    assert all(c.top is not None and c.top.ids is not None and c.top.ids.shape[1] == count for c in found.values())
    setting.check_parity(found, SAMPLING.temperature)


def test_a_response_ends_at_its_answer_on_request(setting: Setting) -> None:
    sampling = replace(SAMPLING, completions=8, max_new_tokens=80)
    plain, stopping = (setting.new_engine(stop_at_answer=stop, max_model_len=128) for stop in (False, True))
    check_stopped(
        {c.id: c for c in plain.generate(setting.prompts, sampling)},
        {c.id: c for c in stopping.generate(setting.prompts, sampling)},
        setting.processor.tokenizer,
    )
