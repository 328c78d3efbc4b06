"""Weights that change while responses are under way: from which token on, computed how, and what is begun again."""

import copy
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ral_system.errors import WeightSyncError
from ral_system.rollout.hf_generator import HfEngine
from ral_system.types import Completion, Prompt, WeightManifest
from ral_system.weights.handover import Handover
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.object_store import Arrays
from tests.offered import manifest_of, offered
from tests.unit.rollout.new_weights import Arrivals
from tests.unit.rollout.test_hf_generator import SAMPLING, Setting

MANIFEST = WeightManifest(1, {})
WEIGHTS = Arrays(MANIFEST, {})
STEP = replace(SAMPLING, completions=1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("new_weights"))


@pytest.fixture(scope="module")
def models(setting: Setting) -> list[Any]:
    """The model at versions 0, 1 and 2."""
    found = [setting.model]
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = copy.deepcopy(found[-1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        found.append(model)
    return found


@pytest.fixture
def begin(setting: Setting, models: list[Any]) -> Callable[..., tuple[HfEngine, Arrivals]]:
    """An engine that gets versions 1 and 2 after so many of its decoding steps."""

    def begun(on_new_weights: str, *at: int) -> tuple[HfEngine, Arrivals]:
        engine = setting.new_engine(on_new_weights=on_new_weights, max_sequences=8)  # type: ignore[arg-type]
        versions = [offered(i, dict(model.named_parameters())) for i, model in enumerate(models)]
        arrivals = Arrivals(engine, dict(zip(at, versions[1:], strict=False)))
        arrivals.watch(engine, "_sample")
        return engine, arrivals

    return begun


def log_probs_at(setting: Setting, model: Any, prompt: Prompt, completion: Completion) -> np.ndarray:
    own, setting.model = setting.model, model
    try:
        return setting.log_probs(prompt, replace(completion, top=None), SAMPLING.temperature)
    finally:
        setting.model = own


def test_a_response_goes_on_with_the_new_weights_alone(
    setting: Setting, models: list[Any], begin: Callable[..., tuple[HfEngine, Arrivals]]
) -> None:
    engine, arrivals = begin("continue", 3, 7)
    found = list(engine.generate(setting.prompts, STEP))
    for version, manifest in enumerate(arrivals.done(), start=1):
        verify_loaded(manifest_of(version, dict(models[version].named_parameters())), manifest)
    whole = setting.generate(sampling=STEP)
    longest = max(found, key=lambda c: len(c.token_ids))
    assert longest.switches == ((3, 1), (7, 2)) and longest.weight_version == 0 and longest.restarts == 0
    assert any(len(c.token_ids) > 8 for c in found)
    for completion in found:
        prompt = next(p for p in setting.prompts if p.id == completion.prompt_id)
        assert completion.token_ids[:3] == whole[completion.id].token_ids[:3]
        scored = [log_probs_at(setting, model, prompt, completion) for model in models]
        bounds = (0, 3, 7, len(completion.token_ids))
        for version, (first, last) in enumerate(itertools.pairwise(bounds)):
            difference = np.abs(scored[version][first:last] - np.array(completion.log_probs[first:last]))
            assert difference.size == 0 or difference.max() <= 1e-5, (completion.id, version)
    moved = [np.abs(log_probs_at(setting, models[1], setting.prompts[0], found[0]) - found[0].log_probs)[:3].max()]
    assert max(moved) > 1e-3  # the versions can be told apart


def test_a_response_is_begun_again_with_the_new_weights(
    setting: Setting, models: list[Any], begin: Callable[..., tuple[HfEngine, Arrivals]]
) -> None:
    engine, arrivals = begin("discard", 3)
    found = {c.id: c for c in engine.generate(setting.prompts, STEP)}
    assert len(arrivals.done()) == 1
    again = {c.id: c for c in engine.generate(setting.prompts, STEP)}  # from the beginning with version 1
    for id, completion in found.items():
        if completion.restarts:
            assert completion.weight_version == 1 and replace(completion, restarts=0) == again[id]
        else:  # it had ended before
            assert completion.weight_version == 0 and len(completion.token_ids) <= 3
    assert any(c.restarts for c in found.values())


def test_the_same_weights_change_nothing(setting: Setting, models: list[Any]) -> None:
    engine = setting.new_engine(on_new_weights="continue")  # type: ignore[arg-type]
    expected = {c.id: c for c in engine.generate(setting.prompts, STEP)}
    arrivals = Arrivals(engine, {4: offered(1, dict(models[0].named_parameters()))})
    arrivals.watch(engine, "_sample")
    found = {c.id: c for c in engine.generate(setting.prompts, STEP)}
    arrivals.done()
    assert {id: c.token_ids for id, c in found.items()} == {id: c.token_ids for id, c in expected.items()}
    assert {c.switches for c in found.values() if len(c.token_ids) > 4} == {((4, 1),)}


class Giver(threading.Thread):
    """Gives weights from a thread of its own and keeps the answer, or what was raised."""

    def __init__(self, handover: Handover) -> None:
        super().__init__()
        self._handover = handover
        self.answer: WeightManifest | None = None
        self.error = ""

    def run(self) -> None:
        try:
            self.answer = self._handover.give(WEIGHTS)
        except (WeightSyncError, TimeoutError) as error:
            self.error = str(error)

    def begin(self) -> None:
        """Returns when the weights wait for the engine."""
        self.start()
        while self._handover._waiting is None:
            assert self.is_alive()


def failing(error: Exception) -> Callable[[Arrays], WeightManifest]:
    def load(weights: Arrays) -> WeightManifest:
        raise error

    return load


def test_weights_are_refused_while_a_batch_is_to_finish() -> None:
    handover = Handover(lambda weights: weights.manifest, "finish")
    with handover.generating(), pytest.raises(WeightSyncError, match="weights 1: the engine is generating; finish or"):
        handover.give(WEIGHTS)
    assert handover.give(WEIGHTS) == MANIFEST


@pytest.mark.parametrize("ends_with", [None, ValueError("the engine broke")])
def test_what_waits_when_a_generation_ends_is_loaded_then(ends_with: Exception | None) -> None:
    handover = Handover(lambda weights: weights.manifest, "continue")
    giver = Giver(handover)
    try:
        with handover.generating():
            giver.begin()
            if ends_with is not None:
                raise ends_with
    except ValueError as error:
        assert error is ends_with
    giver.join(10)
    assert giver.answer == MANIFEST


@pytest.mark.parametrize("error", [WeightSyncError("no room"), TimeoutError("the store did not answer")])
def test_a_load_that_fails_fails_for_both(error: Exception) -> None:
    handover = Handover(failing(error), "discard")
    giver = Giver(handover)
    with pytest.raises(type(error), match=str(error)), handover.generating():
        giver.begin()
        handover.take()
    giver.join(10)
    assert giver.error == str(error)


def test_a_wait_for_a_safe_point_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ral_system.weights.handover.SAFE_POINT_WITHIN_S", 0.01)
    handover = Handover(lambda weights: weights.manifest, "continue")
    giver = Giver(handover)
    with handover.generating():
        with pytest.raises(WeightSyncError, match="finish or close it first"):
            handover.give(WEIGHTS)  # this thread would wait for itself
        giver.start()
        giver.join(10)
        assert not handover.take()  # what its giver gave up is not loaded later
    assert giver.error == "weights 1: the engine did not end a decoding step within 0 s; see logs/rollout_*.log"


def test_a_failed_generation_is_not_hidden_by_weights_that_cannot_be_loaded() -> None:
    handover = Handover(failing(WeightSyncError("no room")), "continue")
    giver = Giver(handover)
    with pytest.raises(ValueError, match="the engine broke"), handover.generating():
        giver.begin()
        raise ValueError("the engine broke")
    giver.join(10)
    assert giver.error == "no room"
