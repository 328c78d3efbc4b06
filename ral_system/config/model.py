"""The `model` group: the model that is trained."""

from __future__ import annotations

from ral_system.config.base import Group, Positive


class TinyModelConfig(Group):
    """Architecture of the model that is built with random weights if `model.path` is null."""

    hidden: Positive
    """Width of the text model and of the vision encoder."""
    layers: Positive
    """Number of layers of the text model."""
    vision_layers: Positive
    """Number of layers of the vision encoder."""
    tokenizer: str | None
    """Folder of a Hugging Face tokenizer with the special tokens of Qwen2.5-VL. Its chat template is used if it has
    places for pictures and videos. null: a tokenizer built from the words of the data."""

    @property
    def sizes(self) -> dict[str, int]:
        """Width and depths of the model."""
        return self.model_dump(exclude={"tokenizer"})


class StartModelConfig(Group):
    """Model that a run starts from."""

    path: str | None
    """Folder or Hub name of a model in Hugging Face format. null builds `model.tiny`."""
    tiny: TinyModelConfig
    """Architecture of a new model."""


class ModelConfig(StartModelConfig):
    """Model that is trained."""

    freeze_vision: bool
    """Do not train the vision encoder and the projector."""
