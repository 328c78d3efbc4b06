"""The teacher on tiny models: what it says is what the policy says, held until taken; other tokenizers and grids."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.config.commands import TrainConfig
from ral_system.errors import DataError, GateError, SetupError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_model
from ral_system.scoring.reference import ReferenceScorer
from ral_system.scoring.teacher import TeacherScorer
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words
from ral_system.types import Held, Sample
from tests.unit.training.learners import Start, Watched, equal, plan

pytestmark = pytest.mark.usefixtures("one_thread")

Config = Callable[..., TrainConfig]
Taught = Callable[..., TeacherScorer]


@pytest.fixture(scope="session")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another depth, width and number of heads than the student's."""
    folder = tmp_path_factory.mktemp("larger") / "model"
    build_tiny_model(folder, words(), hidden=96, layers=3, vision_layers=1, seed=8)
    return folder


@pytest.fixture
def config(make_config: Config, larger_model: Path) -> Config:
    return lambda *overrides: make_config(
        "algorithm=attention_distill",
        f"teacher.path={larger_model}",
        "teacher.max_tokens=150",
        "learner.learning_rate=1e-3",
        "learner.warmup_updates=0",
        *overrides,
    )


@pytest.fixture
def taught(tiny_model: Path, media: MediaStore) -> Taught:
    def made(config: TrainConfig, folder: Path | None = None) -> TeacherScorer:
        (role,) = config.teachers
        folder = folder or Path(role.path)
        return TeacherScorer(config.algorithm, config.teacher, role, folder, tiny_model, media, temperature=1.0)

    return made


def test_scores_are_held_until_they_are_taken(
    config: Config, taught: Taught, larger_model: Path, media: MediaStore, rl_samples: list[Sample]
) -> None:
    compressed = ("algorithm.attention.record=top_k", "algorithm.attention.top_k=5")
    settings = config("algorithm.distillation.tokens.top_k=6", *compressed)
    groups = (settings.algorithm.attention, settings.reward.visual)
    reference = ReferenceScorer(*groups, larger_model, media, dtype="float32", temperature=1.0, max_tokens=10**6)
    reference.score(rl_samples)
    teacher, alone = taught(settings), reference.take([s.id for s in rl_samples])
    teacher.score(rl_samples[:7])
    teacher.score(rl_samples[7:])
    found = teacher.take([s.id for s in rl_samples])
    for sample in rl_samples:
        rows, scores = len(sample.response_token_ids), found[sample.id]
        assert scores.tokens is not None and scores.tokens.ids is not None
        assert scores.tokens.log_probs.shape == (rows, 7) and scores.tokens.ids.shape == (rows, 6)
        assert np.allclose(np.exp(scores.tokens.log_probs.astype(float)).sum(-1), 1, atol=1e-5)
        at = (scores.tokens.ids == np.array(sample.response_token_ids)[:, None]).argmax(-1)
        sampled = scores.tokens.log_probs[np.arange(rows), at]
        assert np.allclose(sampled, alone[sample.id].log_probs, atol=1e-5)
        (record,) = scores.attention
        assert record.values.shape == (rows, 5)
        # K + 1 log-probs and K ids, K attention values and keys and their tail, of 4 bytes each: nothing else is sent
        assert scores.nbytes == rows * 4 * (7 + 6 + 5 + 5 + 1)
    with pytest.raises(KeyError):
        teacher.take([rl_samples[0].id])


def test_a_frozen_model_that_is_away_refuses_to_score(config: Config, taught: Taught, rl_samples: list[Sample]) -> None:
    teacher, samples = taught(config()), rl_samples[:1]
    teacher.score(samples)
    before = teacher.take([samples[0].id])
    teacher.hold(Held.NOTHING)
    with pytest.raises(GateError, match="a frozen model was asked to score while it holds nothing on the shared devic"):
        teacher.score(samples)
    for held in (Held.NOTHING, Held.WEIGHTS):
        with pytest.raises(GateError, match=f"a frozen model was asked to hold {held.words} while it holds nothing"):
            teacher.hold(held)
    teacher.hold(Held.ALL)
    teacher.score(samples)
    after = teacher.take([samples[0].id])
    (one,), (other,) = (found[samples[0].id].attention for found in (before, after))
    assert np.array_equal(one.values, other.values)


def test_a_larger_teacher_teaches_and_how_samples_are_batched_does_not_matter(
    config: Config, taught: Taught, start_rank: Start, rl_samples: list[Sample]
) -> None:
    outcomes = []
    for micro_batch, teachers in ((6, 4), (2, 12)):
        settings = config(
            f"teacher.max_tokens={40 * teachers}", "algorithm.policy_weight=0", "algorithm.kl.coefficient=0"
        )
        teacher, watched = taught(settings), Watched(start_rank(settings))
        teacher.score(rl_samples)
        teaching = teacher.take([s.id for s in rl_samples])
        split = plan(rl_samples, 1, micro_batch)
        behaviour = watched.rank.score(split)
        outcomes.append((watched.rank.update(split.updates[0], behaviour, None, teaching), watched.gradients[0]))
    (metrics, gradients), (other_metrics, other_gradients) = outcomes
    assert metrics["distillation/token_divergence"] > 0.01
    assert metrics["distillation/attention_divergence"] > 1e-4
    assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(other_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest), name


def test_the_student_as_its_own_teacher_changes_no_bit_of_the_update(
    config: Config,
    make_config: Config,
    taught: Taught,
    start_rank: Start,
    tiny_model: Path,
    rl_samples: list[Sample],
) -> None:
    settings = config(f"teacher.path={tiny_model}")
    plain = make_config("algorithm=grpo", "learner.learning_rate=1e-3", "learner.warmup_updates=0")
    weights = []
    for with_teacher in (True, False):
        watched = Watched(start_rank(settings if with_teacher else plain))
        split = plan(rl_samples, 1, 4)
        behaviour = watched.rank.score(split)
        teaching = []
        if with_teacher:
            teacher = taught(settings)
            for micro_batch in split.rank_samples(0):  # computed in the learner's own micro-batches
                teacher.score(micro_batch)
            teaching = [teacher.take([s.id for s in rl_samples])]
        metrics = watched.rank.update(split.updates[0], behaviour, behaviour, *teaching)
        if with_teacher:
            assert metrics["distillation/token_divergence"] == metrics["distillation/attention_divergence"] == 0
        weights.append(watched.weights())
    assert equal(*weights)


def test_following_a_teacher_brings_the_student_closer_in_words_and_looks(
    config: Config, taught: Taught, start_rank: Start, rl_samples: list[Sample]
) -> None:
    settings = config("algorithm.policy_weight=0", "algorithm.kl.coefficient=0")
    teacher, watched = taught(settings), Watched(start_rank(settings))
    teacher.score(rl_samples)
    teaching = teacher.take([s.id for s in rl_samples])
    split = plan(rl_samples, 1, 12)
    behaviour = watched.rank.score(split)
    found = [watched.rank.update(split.updates[0], behaviour, None, teaching) for _ in range(6)]
    for name in ("distillation/token_divergence", "distillation/attention_divergence"):
        assert found[-1][name] < 0.8 * found[0][name]


def test_a_teacher_with_another_tokenizer_is_refused(config: Config, taught: Taught, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    build_tiny_model(folder, ["zebra", *words()], hidden=64, layers=1, vision_layers=1, seed=0)
    with pytest.raises(SetupError, match=r"teacher .*other has a different tokenizer from .*: token '.*' is"):
        taught(config(), folder)


def test_a_wider_vocabulary_of_the_teacher_is_cut_to_the_students(
    config: Config, taught: Taught, larger_model: Path, rl_samples: list[Sample], tmp_path: Path
) -> None:
    folder, model = tmp_path / "wider", load_model(larger_model, dtype="float32")
    shutil.copytree(larger_model, folder)
    width = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(width + 64)
    with torch.no_grad():
        model.get_output_embeddings().weight[width:] = 10 * model.get_output_embeddings().weight[:64]  # likely ones
    model.save_pretrained(folder)
    found = []
    for path in (larger_model, folder):
        teacher = taught(config("algorithm.distillation.tokens.top_k=16"), path)
        teacher.score(rl_samples[:3])
        found.append(teacher.take([s.id for s in rl_samples[:3]]))
    for id, plain in found[0].items():
        wider = found[1][id].tokens
        assert plain.tokens is not None and wider is not None and wider.ids is not None
        assert wider.ids.max() < width
        assert np.allclose(plain.tokens.log_probs, wider.log_probs, atol=1e-5)
    with pytest.raises(SetupError, match=rf"a vocabulary of {width + 64} tokens, the student one of {width}, .*top_k"):
        taught(config("algorithm.distillation.tokens.top_k=null"), folder)


def test_a_teacher_with_another_grid_is_refused_with_both_grids_named(
    config: Config, taught: Taught, larger_model: Path, rl_samples: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "finer"
    shutil.copytree(larger_model, folder)
    for path in folder.glob("*processor*.json"):
        path.write_text(path.read_text().replace(json.dumps(56 * 56), json.dumps(224 * 224)))
    with pytest.raises(
        DataError,
        match=r"sample train/0: image of 56 x 56 px has visual tokens 1 × 2 × 2 for the student but 1 × 8 × 8 for",
    ):
        taught(config(), folder).score(rl_samples)
