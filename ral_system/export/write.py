"""Write a run's model, or its adapters, as a folder to share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import yaml

from ral_system.config.choices import Dtype
from ral_system.errors import ConfigError
from ral_system.export.card import card, shown_config
from ral_system.export.lineage import Lineage
from ral_system.families.chat_template import ChatTemplate
from ral_system.models.folders import check_model_folder
from ral_system.models.loading import load_family, load_model, save_model
from ral_system.models.named_weights import named_weights
from ral_system.runs.folder import RunFolder

_ADAPTER_CONFIG = "adapter_config.json"


def export_model(lineage: Lineage, target: Path, name: str, dtype: Dtype | None = None) -> None:
    """Write the model of the last stage, adapters merged, with tokenizer, processor and card; in `dtype` if given.

    `name` is what others will load it by. Appears whole at `target`, or not at all. Raises SetupError for a damaged
    model folder.
    """
    source = _source(lineage)
    check_model_folder(source)
    model, family = load_model(source, dtype=dtype or _dtype(source)), load_family(source)
    thinks = lineage.last.config["algorithm"]["response_format"] == "think_answer"
    options = ChatTemplate(family.processor, thinks=thinks).options
    text = card(lineage, name, adapters=False, options=options, note=family.card_note)
    with RunFolder.whole(target) as partial:
        save_model(model, named_weights(model), family.processor, partial, source)
        _describe(lineage, partial, text)


def check_adapters(lineage: Lineage) -> Path:
    """The folder of the last stage's adapters. Raises ConfigError for a stage without."""
    adapters = _source(lineage) / "adapter"
    if not adapters.is_dir():
        raise ConfigError(f"--adapters: {lineage.last.stage} of {lineage.last.run} trained no adapters; leave it out")
    return adapters


def export_adapters(lineage: Lineage, target: Path, name: str) -> None:
    """Write the adapters of the last stage in peft's format, with a card. Raises ConfigError for a stage without."""
    adapters = check_adapters(lineage)
    with RunFolder.whole(target) as partial:
        shutil.copytree(adapters, partial, dirs_exist_ok=True)
        settings = json.loads((partial / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = lineage.start
        # Without a name on the hub the user must say what the base is: a path of this machine says nothing to others.
        settings["base_model_name_or_path"] = base.name if base is not None and base.on_hub else None
        (partial / _ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        _describe(lineage, partial, card(lineage, name, adapters=True))


def _source(lineage: Lineage) -> Path:
    return RunFolder(lineage.last.run).model(lineage.last.stage)


def _dtype(folder: Path) -> Dtype:
    """The type of the saved weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return cast(Dtype, config["dtype"])


def _describe(lineage: Lineage, folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")
    shown = yaml.safe_dump(shown_config(lineage.last.config), sort_keys=False, allow_unicode=True)
    (folder / "training_config.yaml").write_text(shown, encoding="utf-8")
