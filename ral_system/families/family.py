"""The interface of a family of vision-language models, from pixels to rotary positions."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ral_system.attention.packing import PackedGroup
from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import TAGS, Device, Dtype
from ral_system.config.data import FilesConfig
from ral_system.errors import DataError
from ral_system.families.chat_template import ChatTemplate
from ral_system.families.tags import with_tags_as_text
from ral_system.types import MAX_MEDIA, EngineNames, Layout, Media, MediaKind

Features = dict[str, Tensor]
"""What a model's vision encoder reads, under the names of its forward pass. Media follow one another along the first
dimension: pictures in their order under some names, videos in theirs under others."""


Encoded = dict[MediaKind, tuple[Any, ...]]
"""What a model's vision encoder saw in each medium, by kind: a tensor each, or a tuple of tensors."""
Occurrences = tuple[tuple[MediaKind, int], ...]
"""For every place in a batch where a medium stands, in order, its kind and which one of that kind it is."""


class PixelBudget(Protocol):
    """The size in which a medium reaches the model. A dataclass: its fields decide which prepared files fit a model."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them. Raises DataError for sides that the model cannot have."""
        ...


class Family(ABC):
    """One model of a family: its configuration and processor, and what follows from them.

    `config` is its transformers configuration, `processor` its Hugging Face processor. Subclasses are listed in
    `ral_system/registry.py`, or found by the entry point group `ral_system.families`.
    """

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the configurations that belong to the family."""
    attention_classes: ClassVar[tuple[str, ...]]
    """Attention classes of the text layers. Their call of the attention interface passes query and key after rotary
    embedding."""
    frames_per_view: ClassVar[int] = 1
    """Frames of a video that the vision encoder merges into one."""
    max_media: ClassVar[Mapping[MediaKind, int]] = MAX_MEDIA
    """Largest number of media of each kind in a prompt, at most `MAX_MEDIA`; 0 for a kind that the models do not
    read."""

    bidirectional: ClassVar[bool] = False
    """Whether the visual tokens of a picture attend to each other in both directions."""

    joins_text: ClassVar[bool] = False
    """Whether text beside a medium may share tokens with the text that takes the medium's place."""

    card_note: ClassVar[str] = ""
    """Sentences for those who load a trained model elsewhere, in its card."""
    engine_names: ClassVar[EngineNames] = EngineNames()
    """What vLLM's loader calls the weights."""

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        self.config, self.processor, self.tokenizer = config, processor, processor.tokenizer

    # --- tokens -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def visual_ids(self) -> Mapping[MediaKind, int]:
        """Token that stands for each kind of media; kinds may share one."""

    @property
    @abstractmethod
    def placeholders(self) -> Mapping[MediaKind, str]:
        """Text that the chat template writes for a medium, and that a rollout engine expands by itself."""

    @property
    @abstractmethod
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that stand for media or enclose them, which a policy must never emit."""

    @abstractmethod
    def expanded(self, media: Media) -> str:
        """Text that takes a placeholder's place: one visual token after the other, with what stands between them."""

    @abstractmethod
    def layout(self, media: Media) -> Layout:
        """The visual tokens of a medium. Known from its size alone, without its pixels."""

    # --- pixels -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def pixels_per_token(self) -> int:
        """Pixels that one visual token stands for."""

    @property
    @abstractmethod
    def picture_bounds(self) -> tuple[int, int]:
        """Smallest and largest number of pixels that the processor leaves a picture."""

    @abstractmethod
    def pixel_budgets(self, data: FilesConfig) -> Mapping[MediaKind, PixelBudget]:
        """The configured sizes of pictures and frames. Raises ConfigError for one that the model cannot have."""

    @abstractmethod
    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        """Input of the vision encoder for each of `media`; `pixels` are a picture (PIL) or frames [F, H, W, 3] each."""

    # --- the model ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Rotary positions of one sequence: int64 [3, T] for time, row and column, or [1, T].

        `visual` bool [T], on CPU, marks the visual tokens, which belong to `layouts` in order.
        """

    @abstractmethod
    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each medium with the vision encoder of a model (without its head).

        The ranks of `sequence`, each given all features, share the work, and each returns all of it.

        The encoder runs once, even without media, because ranks under ZeRO-3 gather the same parameters; what it saw
        then is a piece without tokens. Raises ValueError for media that the model cannot take.
        """

    @abstractmethod
    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        """Keyword arguments for the model without its head: what its encoder saw, place by place."""

    @abstractmethod
    def vision_encoder(self, model: PreTrainedModel) -> nn.Module:
        """The module that turns pixels into features; it may contain the projector."""

    @abstractmethod
    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The modules between vision encoder and text model, within `vision_encoder` or beside it."""

    @property
    @abstractmethod
    def patches_per_token(self) -> int:
        """Patches that the vision encoder merges into one visual token."""

    @abstractmethod
    def vision_attention_flops(self, layout: Layout) -> int:
        """Floating-point operations of the vision encoder's attention over one medium: 4 · width for each pair of
        patches that attend to each other, in every layer.
        """

    def own_tokens(self, inputs: Mapping[str, Any], own: slice) -> dict[str, Any]:
        """Return the text model's inputs that hold all tokens of a stream, by name, cut to a run of them."""
        # a copy: a view would keep all tokens
        return {
            "inputs_embeds": inputs["inputs_embeds"][:, own].clone(),
            "position_ids": inputs["position_ids"][..., own],
        }

    @property
    def linear_layers(self) -> frozenset[int]:
        """Text layers, by depth, with linear attention: a state in place of attention weights and of keys to cache."""
        return frozenset()

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Text layers, by depth, with softmax attention."""
        layers = range(self.config.get_text_config().num_hidden_layers)
        return tuple(i for i in layers if i not in self.linear_layers)

    @property
    def windows(self) -> Mapping[int, int]:
        """How many tokens back the rows of a text layer see, themselves included, by depth; not of layers that see all.

        It is what transformers passes to those layers' attention as `sliding_window`.
        """
        text = self.config.get_text_config()
        kinds = getattr(text, "layer_types", None) or ()
        return {i: text.sliding_window for i, kind in enumerate(kinds) if kind == "sliding_attention"}

    @property
    def linear_attention_flops(self) -> int:
        """Operations of a token in all layers with linear attention, beside those of their matrices."""
        return 0

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence's states in all layers with linear attention, in a rollout engine."""
        return 0

    def attention_layers(self, model: PreTrainedModel) -> list[nn.Module | None]:
        """The softmax attention of the text layers, by depth; None at one with linear attention.

        Raises ValueError for a class that is not known.
        """
        layers = [
            None if i in self.linear_layers else layer.self_attn for i, layer in enumerate(model.get_decoder().layers)
        ]
        for layer in layers:
            if layer is not None and type(layer).__name__ not in self.attention_classes:
                raise ValueError(
                    f"attention probe does not know {type(layer).__name__}; known: {', '.join(self.attention_classes)}"
                )
        return layers

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027 (most families need nothing)
        """Let layers with linear attention take the `packing` of a forward pass, which softmax attention takes."""

    def packed(self, prompt: Sequence[int], responses: Sequence[int]) -> PackedGroup:
        """A prompt, by its tokens, and responses of these lengths in one stream."""
        pictures, at, ids = [], 0, set(self.visual_ids.values()) if self.bidirectional else set()
        for visual, run in itertools.groupby(prompt, ids.__contains__):
            first, at = at, at + len(list(run))
            if visual:
                pictures.append((first, at))
        return PackedGroup(len(prompt), tuple(responses), tuple(pictures))

    # --- the rollout engine -------------------------------------------------------------------------------------------

    @abstractmethod
    def engine_media(self, media: Media, pixels: Any) -> Any:
        """One medium as vLLM's request holds it."""

    def seen_ids(self, engine_ids: Sequence[int]) -> tuple[int, ...]:
        """The prompt that vLLM reports in this family's own tokens, where the engine puts others for media."""
        return tuple(engine_ids)

    def expansion_problem(
        self, token_ids: Sequence[int], engine_ids: Sequence[int], media: Sequence[Media]
    ) -> str | None:
        """Say why vLLM would not expand `engine_ids` to a prompt's `token_ids`, and what to do; None if it does.

        The engine turns what takes a placeholder's place into tokens by itself, where the processor turns the whole
        text into tokens. It is the same where special tokens enclose it, as in families without `joins_text`.
        """
        return None

    def expanded_apart(self, engine_ids: Sequence[int], media: Sequence[Media]) -> list[int]:
        """Replace each medium's placeholder, one token, in `engine_ids` by the tokens of its text alone."""
        placeholders = set(self.tokenizer.convert_tokens_to_ids(list(self.placeholders.values())))
        texts = iter([self.expanded(medium) for medium in media])
        found: list[int] = []
        for token in engine_ids:
            if token in placeholders:
                found += self.tokenizer(next(texts), add_special_tokens=False)["input_ids"]
            else:
                found.append(token)
        return found

    def engine_problem(self, device: Device, dtype: Dtype) -> str | None:
        """Say why vLLM's results differ on this device in this dtype, and what to do; None if they do not."""
        if device == "cpu" and self.linear_layers and dtype != "bfloat16":
            return (
                f"rollout.dtype={dtype}: on a CPU vLLM computes linear attention, which the model has, in bfloat16 "
                "only; set it to bfloat16, or choose rollout=hf"
            )
        return None

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments for vLLM's engine that this family needs."""
        return {}

    # --- what follows -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def tags_as_text(self) -> Tokenizer:
        """The tokenizer without tokens of its own for <think>, </think>, <answer> and </answer>."""
        return with_tags_as_text(self.tokenizer.backend_tokenizer)

    @functools.cached_property
    def special(self) -> Mapping[int, str]:
        """The tokenizer's special tokens, by id."""
        added = {id: token.content for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))

    @functools.cached_property
    def end_of_turn(self) -> int:
        """Token that ends a response.

        It is the first special one that the chat template writes after an assistant's words when the user goes on; the
        tokenizer's end of sequence if there is none.
        """
        after = self.tokenizer(ChatTemplate(self.processor).after_an_answer, add_special_tokens=False)["input_ids"]
        return next((token for token in after if token in self.special), self.tokenizer.eos_token_id)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of a response, without special tokens, except for tags of the response template."""
        read = [token for token in token_ids if token not in self.special or self.special[token] in TAGS]
        text: str = self.tokenizer.decode(read)
        return text

    def tokens(self, media: Media) -> int:
        """Number of visual tokens of a medium."""
        return self.layout(media).tokens

    def visual(self, token_ids: Tensor) -> Tensor:
        """Mark the visual tokens: bool, in the shape of `token_ids`."""
        return torch.isin(token_ids, torch.tensor(list(self.visual_ids.values()), device=token_ids.device))

    def problem(self, token_ids: Sequence[int], media: Sequence[Media]) -> str | None:
        """Check that a sequence's runs of visual tokens are its media, in order; return the problem, if any."""
        ids = set(self.visual_ids.values())
        runs = [(token, len(list(run))) for token, run in itertools.groupby(token_ids) if token in ids]
        layouts = [self.layout(medium) for medium in media]
        expected = [(self.visual_ids[layout.kind], run) for layout in layouts for run in layout.runs]
        if runs == expected:
            return None
        return f"has {self._words(runs)}, but its media make {self._words(expected)}"

    def _words(self, runs: Sequence[tuple[int, int]]) -> str:
        kinds: dict[int, str] = {}
        for kind, token in self.visual_ids.items():
            kinds.setdefault(token, kind)
        return " + ".join(f"{length} {kinds[token]} tokens" for token, length in runs) or "none"


def sized(medium: Media, budgets: Mapping[MediaKind, PixelBudget]) -> Media:
    """A medium in the size that the model sees. Raises DataError."""
    if medium.kind not in budgets:
        raise DataError(f"the model reads no {medium.kind}s")
    width, height = budgets[medium.kind].size(medium.width_px, medium.height_px)
    return replace(medium, width_px=width, height_px=height)


def joined(features: Sequence[Features]) -> Features:
    """Features of several media, one after another."""
    names = dict.fromkeys(name for one in features for name in one)
    return {name: torch.cat([one[name] for one in features if name in one]) for name in names}
