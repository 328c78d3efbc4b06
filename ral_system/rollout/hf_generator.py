"""Rollouts from transformers, in one process: slow, exact, and bitwise repeatable on CPU.

Its own sampling loop instead of `generate`, which would apply whatever penalties and cut-offs the model's
generation_config.json holds. Suffixes: B sequences, T tokens so far (left-padded), V vocabulary, N new tokens.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ral_system.algorithms.distillation import top_tokens
from ral_system.algorithms.log_probs import sampling_log_softmax
from ral_system.attention.intervention import Intervention
from ral_system.batches.features import FeatureExtractor
from ral_system.config.rollout import EngineGroup
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.rollout.gates import check_completion, check_media_tokens, check_prompt_length
from ral_system.rollout.seeds import completion_seed
from ral_system.rollout.stopping import ANSWER_END, stop_token_ids
from ral_system.rollout.top_tokens import with_rest
from ral_system.types import Completion, Completions, FinishReason, Piece, Prompt, Sampling, WeightManifest
from ral_system.weights.engine_memory import EngineMemory, held_manifest
from ral_system.weights.handover import Handover
from ral_system.weights.transfer.object_store import ObjectStore
from ral_system.weights.transfer.transfer import Offer, Setting, Transfer


@dataclass(slots=True)
class _Row:
    """One response in the making. `uniforms` [N] is its randomness, drawn in advance from its own seed."""

    prompt: Prompt
    index: int
    limit: int
    uniforms: Tensor
    seed: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Ids and log-probs of the most likely tokens at each position, if requested."""
    version: int = 0
    switches: list[tuple[int, int]] = field(default_factory=list)
    restarts: int = 0
    begun_s: float = field(default_factory=time.perf_counter)
    first_token_s: float = 0.0

    def new_weights(self, version: int, *, discard: bool) -> None:
        """Go on, or begin again, with these weights."""
        if discard and self.token_ids:
            self.token_ids, self.log_probs, self.top = [], [], []
            self.restarts += 1
        if self.token_ids:
            self.switches.append((len(self.token_ids), version))
        else:
            self.version = version


class HfEngine:
    """A transformers model with its own copy of the weights. Tokens that its family bans are never sampled.

    Constructed like `VllmEngine`; no completion depends on the engine's own `seed`. An `intervention` steers where it
    looks; raises ValueError for one on layers or heads that the model does not have.
    """

    def __init__(
        self,
        model_folder: Path,
        config: EngineGroup,
        media: MediaStore,
        seed: int,
        device: torch.device | str = "cpu",
        intervention: Intervention | None = None,
        transfer: Transfer[Any] | None = None,
    ) -> None:
        self._transfer: Transfer[Any] = transfer or ObjectStore(Setting.of_one_process())
        self._family = load_family(model_folder)
        self._model: Any = load_model(model_folder, dtype=config.dtype, device=device)
        self._memory = EngineMemory.same_names(self._model)
        self._extract = FeatureExtractor(self._family, media)
        self._config = config
        self._device = torch.device(device)
        self._banned = torch.tensor(self._family.banned_ids, dtype=torch.int64, device=self._device)
        self._stop_ids = stop_token_ids(self._family, self._model.generation_config.eos_token_id)
        self._version = 0
        self._handover = Handover(self._load, config.handover)
        self._intervention = intervention if intervention is not None and intervention.active else None
        if self._intervention is not None:
            text = self._model.config.get_text_config()
            linear = self._family.linear_layers
            self._intervention.check_model(text.num_hidden_layers, text.num_attention_heads, linear)

    def close(self) -> None:
        """Give the model's memory back. Not to be used afterwards."""
        del self._model, self._memory, self._handover
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        """Yield every completion as soon as it is finished, in batches of `max_sequences`.

        `log_probs` are of the distribution sampled from; for greedy decoding, of the distribution at temperature 1.
        """
        return self.generate_pieces([Piece(prompt, 0, sampling.completions) for prompt in prompts], sampling)

    def generate_pieces(self, pieces: Sequence[Piece], sampling: Sampling) -> Completions:
        """Generate parts of groups. Log-probs are rounded differently in a batch of other rows."""
        rows = [
            self._row(piece.prompt, index, sampling)
            for piece in pieces
            for index in range(piece.first, piece.first + piece.completions)
        ]
        with self._handover.generating():
            for start in range(0, len(rows), self._config.max_sequences):
                yield from self._decode(rows[start : start + self._config.max_sequences], sampling)

    def load_weights(self, offer: Offer) -> WeightManifest:
        """Copy a published version into the model; return what it holds of the tensors that travelled.

        Another thread's generation changes to it as `rollout.on_new_weights` says.
        """
        return self._handover.give(offer)

    def held(self, published: WeightManifest) -> WeightManifest:
        """Return what the model holds under the published names, read from its memory."""
        names = tuple(published.tensors)
        return held_manifest(published, names, [self._memory.held(names, published.tensors)])

    def _load(self, offer: Offer) -> WeightManifest:
        held = self._memory.load(self._transfer.receive(offer), offer.manifest.tensors)
        self._version = offer.manifest.version
        return held_manifest(offer.manifest, offer.names, [held])

    def _row(self, prompt: Prompt, index: int, sampling: Sampling) -> _Row:
        check_prompt_length(prompt, self._config.max_model_len)
        limit = min(sampling.max_new_tokens, self._config.response_limit(len(prompt.token_ids)))
        seed = completion_seed(sampling.seed, prompt.id, index)
        randomness = torch.Generator().manual_seed(seed)
        return _Row(prompt, index, limit, torch.rand(limit, generator=randomness, dtype=torch.float64), seed)

    def _decode(self, rows: list[_Row], sampling: Sampling) -> Iterator[Completion]:
        begun = False
        while rows:
            if self._handover.take() or not begun:
                # All keys and values are computed again: each token then comes from one version of the weights alone.
                for row in rows:
                    row.new_weights(self._version, discard=self._config.handover == "discard")
                inputs, mask_BT, rope_shift_B1 = self._prefill_inputs(rows)
                visual_BT, system_BT = self._key_kinds(inputs["input_ids"], mask_BT, rows)
                cache, begun = self._new_cache(), True
            steering = {"steering": self._intervention.on(visual_BT, system_BT)} if self._intervention else {}
            with torch.no_grad():
                output = self._model(
                    **inputs,
                    **steering,
                    attention_mask=mask_BT,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            cache = output.past_key_values
            tokens_B = self._sample(rows, output.logits[:, -1], sampling)
            going = []
            for at, row in enumerate(rows):
                if self._stopped(row) or len(row.token_ids) == row.limit:
                    yield self._completion(row)
                else:
                    going.append(at)
            if len(going) < len(rows):
                keep = torch.tensor(going, dtype=torch.int64, device=self._device)
                rows = [rows[at] for at in going]
                tokens_B, mask_BT, rope_shift_B1 = tokens_B[keep], mask_BT[keep], rope_shift_B1[keep]
                visual_BT, system_BT = visual_BT[keep], system_BT[keep]
                cache.reorder_cache(keep)  # which states of linear attention also have
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
            position_B1 = mask_BT.sum(-1, keepdim=True) - 1 + rope_shift_B1
            position_ids = position_B1.expand(3, -1, -1) if inputs["position_ids"].ndim == 3 else position_B1
            inputs = {"input_ids": tokens_B[:, None], "position_ids": position_ids}

    def _stopped(self, row: _Row) -> bool:
        if row.token_ids[-1] in self._stop_ids:
            return True
        return self._config.stop_at_answer and ANSWER_END in self._text(row)

    def _text(self, row: _Row) -> str:
        return row.prompt.opening + self._family.text(row.token_ids)

    def _key_kinds(self, input_ids_BT: Tensor, mask_BT: Tensor, rows: list[_Row]) -> tuple[Tensor, Tensor]:
        """bool [B, T] twice: the prompts' visual tokens, and those of their system turns."""
        position_BT = mask_BT.cumsum(-1) - 1  # in each prompt
        system_B1 = torch.tensor([[row.prompt.system_tokens] for row in rows], device=self._device)
        inside_BT = mask_BT.bool()
        visual_BT = self._family.visual(input_ids_BT)
        return visual_BT & inside_BT, (position_BT < system_B1) & inside_BT

    def _sample(self, rows: list[_Row], logits_BV: Tensor, sampling: Sampling) -> Tensor:
        """Draw one token per row by inverting its cumulative distribution at the row's own random number."""
        temperature = sampling.temperature
        log_p_BV = sampling_log_softmax(logits_BV, temperature=temperature or 1.0, banned_token_ids=self._banned)
        if temperature == 0:
            tokens_B = log_p_BV.argmax(-1)
        else:
            cumulative_BV = log_p_BV.double().exp().cumsum(-1)
            uniform_B = torch.stack([row.uniforms[len(row.token_ids)] for row in rows]).to(self._device)
            # Strictly below the total, so the first larger entry exists and is a token of positive probability.
            target_B = uniform_B.clamp(max=1 - 2**-52) * cumulative_BV[:, -1]
            tokens_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
        log_probs_B = log_p_BV.gather(-1, tokens_B[:, None])[:, 0]
        for row, token, log_prob in zip(rows, tokens_B.tolist(), log_probs_B.tolist(), strict=True):
            row.first_token_s = row.first_token_s or time.perf_counter() - row.begun_s
            row.token_ids.append(token)
            row.log_probs.append(log_prob)
        if sampling.top_tokens:
            ids_BK = top_tokens(log_p_BV, tokens_B, sampling.top_tokens)
            found_BK = log_p_BV.gather(-1, ids_BK)
            for row, ids_K, log_probs_K in zip(rows, ids_BK.cpu().numpy(), found_BK.cpu().numpy(), strict=True):
                row.top.append((ids_K, log_probs_K))
        return tokens_B

    def _new_cache(self) -> DynamicCache:
        """An empty cache. By the model's configuration, which linear attention needs, windows would drop keys."""
        return DynamicCache(config=self._model.config) if self._family.linear_layers else DynamicCache()

    @torch.no_grad()
    def _prefill_inputs(self, rows: Sequence[_Row]) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Model inputs of what there is so far, their mask [B, T], and what M-RoPE adds to later positions [B, 1]."""
        sequences = [(*row.prompt.token_ids, *row.token_ids) for row in rows]
        length = max(map(len, sequences))
        input_ids_BT = torch.zeros(len(rows), length, dtype=torch.int64)
        mask_BT = torch.zeros_like(input_ids_BT)
        for at, sequence in enumerate(sequences):
            input_ids_BT[at, length - len(sequence) :] = torch.tensor(sequence)
            mask_BT[at, length - len(sequence) :] = 1
        media = self._encoded_media([row.prompt for row in rows])
        # Positions are made here, not by the model: it would count padding as text.
        position_ABT, rope_shift_B1 = self._positions(rows, sequences, length)
        position_ids = position_ABT if len(position_ABT) > 1 else position_ABT[0]
        inputs = {"input_ids": input_ids_BT, "position_ids": position_ids}
        if self._family.bidirectional:
            inputs["token_type_ids"] = self._family.visual(input_ids_BT).long()
        on_device = {name: value.to(self._device) for name, value in inputs.items()} | media
        return on_device, mask_BT.to(self._device), rope_shift_B1.to(self._device)

    def _encoded_media(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Encode all media in prompt order, each once."""
        for prompt in prompts:
            check_media_tokens(prompt, self._family)
        unique, occurrences = self._extract.distinct([media for prompt in prompts for media in prompt.media])
        on_device = {name: value.to(self._device) for name, value in self._extract(unique).items()}
        return self._family.inputs(self._family.encode(self._model.model, on_device), occurrences)

    def _positions(
        self, rows: Sequence[_Row], sequences: Sequence[tuple[int, ...]], length: int
    ) -> tuple[Tensor, Tensor]:
        """int64 [3, B, T], or [1, B, T]; and [B, 1]: by how much later tokens are further on than they are many."""
        own = [
            self._family.positions(
                self._family.visual(torch.tensor(sequence)), [self._family.layout(m) for m in row.prompt.media]
            )
            for row, sequence in zip(rows, sequences, strict=True)
        ]
        position_ABT = torch.stack([nn.functional.pad(of_row, (length - of_row.shape[1], 0)) for of_row in own], dim=1)
        rope_shift_B1 = torch.tensor([[int(of_row.max()) + 1 - of_row.shape[1]] for of_row in own])
        return position_ABT, rope_shift_B1

    def _completion(self, row: _Row) -> Completion:
        completion = Completion(
            prompt_id=row.prompt.id,
            index=row.index,
            token_ids=tuple(row.token_ids),
            log_probs=tuple(row.log_probs),
            text=self._text(row),
            finish_reason=FinishReason.STOP if self._stopped(row) else FinishReason.LENGTH,
            weight_version=row.version,
            top=with_rest(*(np.stack(part) for part in zip(*row.top, strict=True))) if row.top else None,
            switches=tuple(row.switches),
            restarts=row.restarts,
            seed=row.seed,
            first_token_s=row.first_token_s,
        )
        banned = frozenset(self._banned.tolist())
        check_completion(
            row.prompt,
            completion,
            banned_token_ids=banned,
            stop_token_ids=self._stop_ids,
            stop_text=ANSWER_END if self._config.stop_at_answer else None,
        )
        return completion
