"""The `model` group: which model is trained."""

from __future__ import annotations

from ral_system.config.base import Group, Positive


class TinyModelConfig(Group):
    """Architecture of the model that is built from nothing when `model.path` is null."""

    hidden: Positive
    layers: Positive
    vision_layers: Positive
    tokenizer: str | None
    """Folder of a Hugging Face tokenizer with Qwen2.5-VL's special tokens; null builds one of the data's words. Its
    chat template is used if it places pictures and videos."""

    @property
    def sizes(self) -> dict[str, int]:
        """Width and depths."""
        return self.model_dump(exclude={"tokenizer"})


class StartModelConfig(Group):
    """Which model a run starts from."""

    path: str | None
    """Folder or hub name in Hugging Face format; null builds `tiny`."""
    tiny: TinyModelConfig


class ModelConfig(StartModelConfig):
    """Which model is trained."""

    freeze_vision: bool
    """Keep the vision encoder and projector fixed."""
