import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from bench.models import served
from ral_system.config.choices import Dtype
from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError
from ral_system.export.lineage import lineage
from ral_system.export.write import export_adapters, export_model
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from tests.unit.export.exported import end_stage
from tests.unit.media.clips import noise

FAMILIES = {of.model_type: of.build for of in served()}


@pytest.fixture(scope="module", params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of a family. Do not write to it."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder)
    return folder


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_families_weights_are_kept_and_cast(
    make_config: Callable[..., TrainConfig], tmp_path: Path, family_folder: Path, dtype: Dtype | None
) -> None:
    check_kept_and_cast(make_config("experiment=smoke"), tmp_path, family_folder, dtype)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_head_that_is_the_embedding_is_kept_and_cast(
    make_config: Callable[..., TrainConfig], tmp_path: Path, tied_model: Path, dtype: Dtype | None
) -> None:
    check_kept_and_cast(make_config("experiment=smoke"), tmp_path, tied_model, dtype)


def check_kept_and_cast(config: TrainConfig, folder: Path, source: Path, dtype: Dtype | None) -> None:
    """Export a run whose model is `source`, and read it again."""
    end_stage(folder / "run", config, "rl", source, source)
    export_model(lineage(folder / "run"), folder / "out", "out", dtype)
    assert json.loads((folder / "out" / "config.json").read_text())["dtype"] == (dtype or "float32")
    expected = load_model(source, dtype=dtype or "float32").state_dict()
    found = load_model(folder / "out", dtype=dtype or "float32").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert _names_in_file(folder / "out") == _names_in_file(source)  # vLLM knows those
    tokenizer, other = (load_family(at).tokenizer for at in (folder / "out", source))
    assert tokenizer.get_vocab() == other.get_vocab() and tokenizer.chat_template == other.chat_template
    assert not (folder / "out" / "stage.json").exists()
    assert (folder / "out" / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    assert (folder / "out" / "training_config.yaml").is_file()


def _names_in_file(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_the_card_asks_with_the_prompt_of_training(
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    family_folder: Path,
    media: MediaStore,
) -> None:
    config = make_config("experiment=smoke")
    end_stage(tmp_path / "run", config, "rl", family_folder, family_folder)
    export_model(lineage(tmp_path / "run"), tmp_path / "out", "out")
    Image.fromarray(noise(1, 1, 61, 100)[0]).save(tmp_path / "picture.png")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet[1].replace("…", "what is at a1 ?"), names)
    picture = media.put(Image.open(tmp_path / "picture.png"))
    prompt = ChatRenderer(load_family(family_folder), config.data.system_prompt).prompt(
        id="p", kind="", question="what is at a1 ?", answer="", media=[picture]
    )
    assert names["inputs"]["input_ids"].tolist() == [list(prompt.token_ids)]
    assert names["answers"].shape[1] > len(prompt.token_ids)


@pytest.mark.parametrize(("response_format", "thinks"), [("think_answer", True), ("answer_only", False)])
def test_the_card_thinks_as_the_model_did_in_training(
    make_config: Callable[..., TrainConfig], tmp_path: Path, qwen3_folder: Path, response_format: str, thinks: bool
) -> None:
    shutil.copytree(qwen3_folder, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking is false %}<think></think>{% endif %}")
    config = make_config("experiment=smoke", f"algorithm.response_format={response_format}")
    end_stage(tmp_path / "run", config, "rl", tmp_path / "model", tmp_path / "model")
    export_model(lineage(tmp_path / "run"), tmp_path / "out", "out")
    assert f'return_tensors="pt", enable_thinking={thinks}\n' in (tmp_path / "out" / "README.md").read_text()


def test_adapters_forget_the_folder_they_were_trained_on(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (adapters := tmp_path / "model" / "adapter").mkdir(parents=True)
    (adapters / "adapter_config.json").write_text('{"r": 4, "base_model_name_or_path": "/home/somebody/model"}')
    (adapters / "adapter_model.safetensors").write_bytes(b"matrices")
    end_stage(tmp_path / "here", make_config("experiment=smoke"), "rl", tmp_path / "base", tmp_path / "model")
    hub = tmp_path / "models--lab--base" / "snapshots" / "66285546d2b8"
    end_stage(tmp_path / "hub", make_config("experiment=smoke"), "rl", hub, tmp_path / "model")
    cold = end_stage(tmp_path / "twice", make_config("experiment=smoke"), "sft", hub, tmp_path / "model")
    end_stage(tmp_path / "twice", make_config("experiment=smoke"), "rl", cold, tmp_path / "model")
    for run, base in (("here", None), ("hub", "lab/base"), ("twice", None)):  # which belong on the cold start
        export_adapters(lineage(tmp_path / run), tmp_path / f"{run}_out", "out")
        config = json.loads((tmp_path / f"{run}_out" / "adapter_config.json").read_text())
        assert config == {"r": 4, "base_model_name_or_path": base}
        assert (tmp_path / f"{run}_out" / "adapter_model.safetensors").read_bytes() == b"matrices"


def test_a_stage_without_adapters_has_none_to_export(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    end_stage(tmp_path / "run", make_config("experiment=smoke"), "rl", "models/start")
    with pytest.raises(ConfigError, match=r"^--adapters: rl of .*run trained no adapters; leave it out$"):
        export_adapters(lineage(tmp_path / "run"), tmp_path / "out", "out")
    assert not (tmp_path / "out").exists()
