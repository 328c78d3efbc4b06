"""The visual attention score of a model folder over prompts."""

from pathlib import Path

import pytest
import torch

from ral_system.attention.visual_score import VisualScore
from ral_system.config.data import VisualSearchConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError
from ral_system.evaluation.visual_score import measure_visual_score
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.tasks.visual_search_prompts import VisualSearchPrompts


def measured(model: Path, media: MediaStore, data: VisualSearchConfig, batch: int) -> VisualScore | None:
    renderer = ChatRenderer(load_family(model), data.system_prompt)
    source = VisualSearchPrompts(data, renderer, media, format="think_answer")
    prompts = [source.question("held_out", i) for i in range(5)]
    assert bool(prompts[0].system_tokens) == bool(data.system_prompt)
    return measure_visual_score(model, prompts, media, dtype="float32", max_tokens=60 * batch)


def test_how_prompts_are_batched_does_not_matter(tiny_model: Path, media: MediaStore, make_config) -> None:
    found = [measured(tiny_model, media, make_config().data, batch) for batch in (1, 2, 5)]
    for score in found:
        assert score is not None and found[0] is not None
        assert score.score.shape == (2, 2) and score.rows == found[0].rows > 5
        assert torch.allclose(score.score, found[0].score, rtol=1e-4)
        assert (score.visual_mass > 0).all() and (score.visual_mass + score.system_mass < 1).all()


def test_without_a_system_prompt_there_is_none(tiny_model: Path, media: MediaStore, make_config) -> None:
    assert measured(tiny_model, media, make_config("data.system_prompt=''").data, 2) is None


def test_a_family_that_cannot_be_probed_is_one_line_with_the_remedy(
    tiny_model: Path, media: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ral_system.families.qwen_vl.family.QwenVl.attention_classes", ("Other",))
    with pytest.raises(ConfigError, match=r"does not know Qwen2_5_VLAttention; .*set evaluation.attention_questions=0"):
        measure_visual_score(tiny_model, [], media, dtype="float32", max_tokens=100)


def test_of_no_prompts_there_is_none(tiny_model: Path, media: MediaStore) -> None:
    assert measure_visual_score(tiny_model, [], media, dtype="float32", max_tokens=100) is None
