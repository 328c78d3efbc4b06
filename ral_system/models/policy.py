"""A language model as a policy: log-probs of its responses and where its response rows look, in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ral_system.algorithms.token_read import TokenRead, TokenValues
from ral_system.attention.group import GroupAttention
from ral_system.attention.intervention import Intervention, Steering
from ral_system.attention.kernels import in_words, kernel_for
from ral_system.attention.packing import Packing
from ral_system.attention.probe import AttentionProbe, Capture, PackedRows, no_mask
from ral_system.attention.provenance import KeyKind
from ral_system.attention.read import AttentionRead
from ral_system.attention.selection import select_keys
from ral_system.attention.sequence import SequenceGroup
from ral_system.batches.collate import TensorBatch
from ral_system.errors import ConfigError
from ral_system.families.family import Encoded, Family, Features
from ral_system.models.head import TokenHead
from ral_system.models.own_tokens import OwnTokens
from ral_system.models.similarity import visual_similarity


@dataclass(frozen=True)  # without slots: ZeRO-3 looks for tensors in __dict__
class PolicyOutput:
    """Suffixes: B samples, R response positions (padded)."""

    log_probs: Tensor
    """float32 [B, R] of the response tokens; 0 where padded."""
    entropy: Tensor
    """float32 [B, R], differentiable if the read says so; 0 where padded."""
    top1: Tensor
    """bool [B, R]: the response token is the most likely one."""
    attention: Mapping[AttentionRead, tuple[GroupAttention, ...]]
    """Rows that each read asked for, of every group (Eq 2)."""
    tokens: TokenValues
    """Values of the distributions that the N response tokens, sample by sample, were drawn from."""
    visual_similarity: Tensor | None = None
    """float32 [B, R], detached, 0 where padded; None unless it was asked for (`models.similarity`)."""
    probed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Query of all tokens, [1, H, T, D], and the tokens that are rows, once for each layer of reads with `whole`."""


class PolicyModel(nn.Module):
    """Wraps a transformers vision-language model. Parameter names gain the prefix `model.`.

    Tokens that the family bans carry no probability. Raises ValueError for a model that cannot be probed, or for an
    intervention on layers or heads that it does not have.
    """

    banned_token_ids: Tensor
    sequence: SequenceGroup | None = None
    """Ranks that hold each micro-batch together; every one is given all of it."""
    autocast: torch.dtype | None = None
    """What text model and vision encoder multiply matrices in; None: the dtype of their weights. The head keeps its."""
    encoder_passes: int = 0
    """Passes of the vision encoder over media so far, and how many media these encoded."""
    media_encoded: int = 0

    def __init__(
        self, model: PreTrainedModel, family: Family, *, temperature: float, intervention: Intervention | None = None
    ) -> None:
        super().__init__()
        self.model = model
        model.lm_head = TokenHead.of(model.lm_head)
        self.family = family
        self._layers = family.attention_layers(model)
        family.prepare(model)
        self._temperature = temperature
        self._intervention = intervention if intervention is not None and intervention.active else None
        if self._intervention is not None:
            text = model.config.get_text_config()
            self._intervention.check_model(text.num_hidden_layers, text.num_attention_heads, family.linear_layers)
        self.register_buffer("banned_token_ids", torch.tensor(family.banned_ids, dtype=torch.int64), persistent=False)

    def share(self, sequence: SequenceGroup) -> None:
        """Let the ranks of `sequence` hold each micro-batch together.

        Raises ConfigError for a model with linear attention, for one whose heads they cannot share equally, and for a
        family that cannot share its encoder.
        """
        if "sequence" not in signature(self.family.encode).parameters:
            raise ConfigError(
                f"learner.sequence_parallel={sequence.size}: {type(self.family).__name__}.encode takes no `sequence`; "
                "set it to 1, or add the parameter to the family"
            )
        if self.family.linear_layers:
            raise ConfigError(
                f"learner.sequence_parallel={sequence.size}: {type(self.family).__name__} has layers with linear "
                "attention, whose state runs through a whole sequence, so ranks cannot share one; set it to 1"
            )
        heads = self.model.config.get_text_config().num_attention_heads
        if heads % sequence.size:
            legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ConfigError(
                f"learner.sequence_parallel={sequence.size} does not divide the model's {heads} attention heads; "
                f"set it to one of {legal}"
            )
        self.sequence = sequence
        self.model.get_decoder().register_forward_pre_hook(self._take_own_tokens, with_kwargs=True)

    def _take_own_tokens(
        self, decoder: nn.Module, positional: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert self.sequence is not None
        own = self.sequence.own(inputs["packing"].tokens)
        return positional, inputs | self.family.own_tokens(inputs, own)

    def encode(self, features: Features) -> Encoded:
        """Encode media for `TensorBatch.encoded` of batches with them."""
        shared = {} if self.sequence is None else {"sequence": self.sequence}
        encoded = self.family.encode(self.model.model, features, **shared)
        if features:  # otherwise only because other ranks have media
            self.encoder_passes += 1
            self.media_encoded += sum(map(len, encoded.values()))
        return encoded

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the head knows."""
        return self.model.lm_head.out_features

    def attention_kernel(self) -> str:
        """Name the kernels of the text layers' softmax attention. Raises SetupError for one that cannot be used."""
        dtype = self.autocast or self.model.lm_head.weight.dtype
        kernel = kernel_for(self.banned_token_ids.device, dtype)
        return in_words(kernel, pictures=self.family.bidirectional, windows=bool(self.family.windows))

    def check(self, read: AttentionRead) -> None:
        """Raise ValueError for a read of layers that the model does not have."""
        AttentionProbe(self._layers, read.layers)

    def forward(
        self, batch: TensorBatch, reads: Sequence[AttentionRead] = (), tokens: TokenRead | None = None
    ) -> PolicyOutput:
        """One pass over a micro-batch. `tokens` says what is read of the distributions of response positions."""
        packing, sequence = batch.packing, self.sequence
        rows = {read: PackedRows(packing.lengths, tuple(map(torch.cat, batch.rows[read.rows]))) for read in reads}
        with ExitStack() as probes:
            probes.enter_context(self._autocast(batch.input_ids.device))
            captures = {
                read: probes.enter_context(AttentionProbe(self._layers, read.layers).capture(at, whole=read.whole))
                for read, at in rows.items()
            }
            hidden_TE = self.model.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.position_ids,
                **self.family.inputs(
                    self.encode(batch.features) if batch.encoded is None else batch.encoded, batch.occurrences
                ),
                packing=packing,
                attention_mask=no_mask(),
                use_cache=False,
                **self._steering(batch),
                **({} if sequence is None else {"sequence": sequence}),
            ).last_hidden_state[0]
        mask_BR, tokens = batch.response_mask, tokens or TokenRead()
        values = self._token_values(hidden_TE, batch.response_ids[mask_BR], packing, tokens)
        similarity_N = visual_similarity(hidden_TE, batch.keys, packing, sequence) if tokens.visual_similarity else None
        zeros_BR = torch.zeros(mask_BR.shape, device=mask_BR.device)
        return PolicyOutput(
            log_probs=zeros_BR.masked_scatter(mask_BR, values.log_probs),
            entropy=zeros_BR.masked_scatter(mask_BR, values.entropy),
            top1=torch.zeros_like(mask_BR).masked_scatter(mask_BR, values.top1),
            tokens=values,
            visual_similarity=None if similarity_N is None else zeros_BR.masked_scatter(mask_BR, similarity_N),
            attention={
                read: _attention(read, captures[read], at, batch, sequence, hidden_TE.device)
                for read, at in rows.items()
            },
            probed=[
                (capture.query, rows[read].packed().unique())
                for read, of_read in captures.items()
                for capture in of_read
                if capture.query is not None
            ],
        )

    @contextmanager
    def without_autocast(self) -> Iterator[None]:
        """Multiply matrices in the dtype of their weights inside the block, as rollout engines do."""
        chosen, self.autocast = self.autocast, None
        try:
            yield
        finally:
            self.autocast = chosen

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)

    def _token_values(self, hidden_TE: Tensor, targets_N: Tensor, packing: Packing, read: TokenRead) -> TokenValues:
        """Values of all response tokens, from the hidden states of this rank's tokens."""
        if self.sequence is None:
            at_N, own = packing.predicting, None
        else:
            own = OwnTokens(packing, self.sequence)
            at_N, targets_N, read = own.predicting, targets_N[own.chosen.to(targets_N.device)], read.of(own.chosen)
        hidden_NE = read_rows(hidden_TE, at_N.to(hidden_TE.device))
        values = self.model.lm_head(hidden_NE, targets_N, read, self._temperature, self.banned_token_ids)
        return values if own is None else own.gather(values)

    def _steering(self, batch: TensorBatch) -> dict[str, Steering]:
        if self._intervention is None:
            return {}
        kind_1T = batch.keys.kind[None]
        visual_1T = (kind_1T == KeyKind.IMAGE) | (kind_1T == KeyKind.VIDEO)
        return {"steering": self._intervention.on(visual_1T, kind_1T == KeyKind.SYSTEM)}


def read_rows(x_TE: Tensor, rows_N: Tensor) -> Tensor:
    """Rows of `x` [N, E], some of them several times; their gradient is the same in every run.

    Indexing adds up the gradients of a repeated row in a fixed order on a GPU, but with several threads of a CPU in the
    order in which these come to it; `index_select` the other way round.
    """
    return x_TE[rows_N] if x_TE.is_cuda else x_TE.index_select(0, rows_N)


def _attention(
    read: AttentionRead,
    captures: Sequence[Capture],
    rows: PackedRows,
    batch: TensorBatch,
    sequence: SequenceGroup | None,
    device: torch.device,
) -> tuple[GroupAttention, ...]:
    groups, keys = batch.packing.groups, batch.keys.split(batch.packing.lengths)
    counts = [tuple(map(len, of_group)) for of_group in batch.rows[read.rows]]
    by_group = zip(*(capture.groups(device) for capture in captures), strict=True)
    return tuple(
        GroupAttention(layers, group, at, of_group, select_keys(read.keys, of_keys), read.heads, read.backend, sequence)
        for layers, group, at, of_group, of_keys in zip(by_group, groups, rows.positions, counts, keys, strict=True)
    )
