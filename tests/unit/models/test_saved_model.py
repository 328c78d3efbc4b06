import json
import shutil
from pathlib import Path

import pytest

from ral_system.models.loading import load_family, load_model, save_model

PUBLISHED = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06, "eos_token_id": [2, 0]}
"""Like Qwen2.5-VL-7B-Instruct's."""
CONTRADICTORY = {"do_sample": False, "temperature": 0.7}
"""transformers reads such files, and refuses to write them."""


@pytest.mark.parametrize("settings", [PUBLISHED, CONTRADICTORY, None], ids=["published", "contradictory", "none"])
def test_generation_settings_are_those_of_the_start_model(
    tiny_model: Path, tmp_path: Path, settings: dict[str, object] | None
) -> None:
    start, saved = tmp_path / "start", tmp_path / "saved"
    shutil.copytree(tiny_model, start)
    file = start / "generation_config.json"
    file.unlink() if settings is None else file.write_text(json.dumps(settings))

    model = load_model(start, dtype="float32")
    save_model(model, model.state_dict(), load_family(start).processor, saved, start)
    if settings is None:
        assert not (saved / "generation_config.json").exists()
    else:
        assert (saved / "generation_config.json").read_bytes() == file.read_bytes()
    again = load_model(saved, dtype="float32").state_dict()
    assert all(again[name].equal(tensor) for name, tensor in model.state_dict().items())
