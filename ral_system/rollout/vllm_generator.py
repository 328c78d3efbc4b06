"""Rollouts from vLLM, which only this file and `vllm_worker` import; start their process with `vllm_environment`.

Differences from plain vLLM use: prompts are token ids and must come back as we sent them; log-probs are of the
distribution that was sampled from; every completion has its own seed; a weight update is read back from the engine.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.sampling_params import RequestOutputKind

from ral_system.config.choices import Device
from ral_system.config.rollout import VllmEngineConfig
from ral_system.errors import RalError, WeightSyncError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.rollout.gates import check_completion, check_media_tokens, check_prompt_ids, check_prompt_length
from ral_system.rollout.module_scan import llvmlite_hidden
from ral_system.rollout.rank_failures import rank_failures
from ral_system.rollout.seeds import completion_seed
from ral_system.rollout.servable import check_servable
from ral_system.rollout.stopping import ANSWER_END, stop_token_ids
from ral_system.rollout.top_tokens import with_rest
from ral_system.types import (
    MAX_MEDIA,
    Completion,
    Completions,
    FinishReason,
    Held,
    Holding,
    Media,
    Piece,
    Prompt,
    Sampling,
    TokenRecord,
    WeightManifest,
)
from ral_system.weights.engine_memory import Held as HeldParts
from ral_system.weights.engine_memory import held_manifest
from ral_system.weights.handover import Handover
from ral_system.weights.transfer.object_store import ObjectStore
from ral_system.weights.transfer.transfer import Offer, Setting, Transfer

_BAN = -100.0  # vLLM clamps biases to ±100; exp(-100) of the best token's probability is below fp32 resolution
_RANK = "VllmWorker"
"""How the names of vLLM's rank processes begin."""
_END_S = 20


class VllmEngine:
    """One vLLM engine in this process (with tensor parallelism: one driver, workers elsewhere).

    Tokens that the model's family bans are never sampled and carry no probability. `seed` is the engine's own;
    completions do not depend on it. The key-value cache takes `config.memory_gib` on CPU and
    `config.gpu_memory_utilization` on a GPU. An engine that `sleeps` can leave a GPU to others (`hold`). Raises
    SetupError for a model that vLLM cannot serve (`check_servable`).
    """

    def __init__(
        self,
        model_folder: Path,
        config: VllmEngineConfig,
        media: MediaStore,
        seed: int,
        device: Device,
        transfer: type[Transfer[Any]] = ObjectStore,
        setting: Setting | None = None,
        *,
        sleeps: bool = False,
    ) -> None:
        self._family = load_family(model_folder)
        check_servable(model_folder, self._family, device, config.dtype)
        on_cpu = device == "cpu"
        # With linear attention on CPU, the cache would cut prompts where it keeps states.
        caches_prefixes = False if on_cpu and self._family.linear_layers else None
        cache_bytes = int(config.memory_gib * 2**30) if on_cpu and config.memory_gib is not None else None
        arguments = self._family.engine_arguments()
        with rank_failures(), llvmlite_hidden():
            self._llm = LLM(
                model=str(model_folder),
                dtype=config.dtype,
                seed=seed % 2**31,
                tensor_parallel_size=config.tensor_parallel,
                # Left to itself, vLLM would spread the ranks over this actor's placement group, onto others' bundles.
                distributed_executor_backend="mp" if config.tensor_parallel > 1 else None,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_sequences,
                max_num_batched_tokens=max(4096, config.max_model_len),
                # A prompt cut in two takes back its first part's random number; torch cannot do that on CPU.
                enable_chunked_prefill=False if on_cpu else None,
                enable_prefix_caching=caches_prefixes,
                kv_cache_memory_bytes=cache_bytes,
                gpu_memory_utilization=config.gpu_memory_utilization,
                enforce_eager=on_cpu,
                enable_sleep_mode=sleeps and not on_cpu,  # vLLM refuses it on CPU, where calls to sleep are allowed
                logprobs_mode="processed_logprobs",
                limit_mm_per_prompt=dict(self._family.max_media),
                mm_processor_cache_gb=config.MEDIA_CACHE_GIB,
                disable_log_stats=False,
                # With a step in flight, a token of the old weights could be labelled with the new ones.
                async_scheduling=None if config.handover == "finish" else False,
                worker_extension_cls="ral_system.rollout.vllm_worker.WeightWorker",
                # As the learner, the engine keeps logits of 16-bit weights in float32.
                hf_overrides={"head_dtype": "float32"} | arguments.pop("hf_overrides", {}),
                **arguments,
            )
        self._media = media
        self._max_in_flight = 2 * config.max_sequences
        self._max_model_len = config.max_model_len
        self._stop_text = ANSWER_END if config.stop_at_answer else None
        self._banned = frozenset(self._family.banned_ids)
        model_config = self._llm.llm_engine.model_config
        self._stop_ids = stop_token_ids(self._family, model_config.try_get_generation_config().get("eos_token_id"))
        self._llm.llm_engine.set_weight_version("0")
        self._llm.collective_rpc(
            "ral_open", args=(transfer, setting or Setting.of_one_process(), self._family.engine_names)
        )
        self._on_new_weights = config.handover
        self._handover = Handover(self._load, config.handover)
        self._holding = Holding("rollout engine")

    def close(self) -> None:
        """Give the engine's memory back, so the process can start another. Not to be used afterwards."""
        ranks = [child for child in multiprocessing.active_children() if child.name.startswith(_RANK)]
        self._llm.llm_engine.engine_core.shutdown()
        for rank in ranks:  # vLLM does not wait for those that it has to kill
            rank.join(_END_S)
            if rank.is_alive():
                print(f"warning: {rank.name} (process {rank.pid}) is alive {_END_S} s after its end", file=sys.stderr)
        del self._llm, self._handover
        cleanup_dist_env_and_memory()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        """Yield every completion as soon as it is finished. Raises GateError when vLLM saw other tokens than ours.

        `log_probs` are of the distribution sampled from; for greedy decoding, of the distribution at temperature 1.
        A completion is a function of the prompt, its index, the seed and the weights, up to the rounding of logits.
        """
        return self.generate_pieces([Piece(prompt, 0, sampling.completions) for prompt in prompts], sampling)

    def generate_pieces(self, pieces: Sequence[Piece], sampling: Sampling) -> Completions:
        """Generate parts of groups. Media are processed once for neighbouring pieces of one prompt."""
        self._holding.require(Held.ALL, "generate")
        waiting = ((p.prompt, index) for p in pieces for index in range(p.first, p.first + p.completions))
        running: dict[str, tuple[Prompt, int]] = {}
        inputs: dict[str, Any] = {}  # the latest prompt, processed once for all its completions
        restarts: Counter[str] = Counter()
        engine = self._llm.llm_engine
        with self._handover.generating(), self._aborting(running):
            while True:
                if self._handover.take():
                    inputs.clear()  # the engine has dropped its copies of their media
                    if self._on_new_weights == "discard":
                        engine.abort_request(list(running))
                        restarts.update(running.keys())
                        for prompt, index in running.values():
                            self._submit(prompt, index, sampling, inputs)
                while len(running) < self._max_in_flight and (request := next(waiting, None)) is not None:
                    running[self._submit(*request, sampling, inputs)] = request
                if not running:
                    return
                for output in engine.step():
                    if output.finished:
                        completion = self._completion(*running.pop(output.request_id), output, sampling)
                        yield replace(completion, restarts=restarts[output.request_id])

    def load_weights(self, offer: Offer) -> WeightManifest:
        """Replace weights in place by a published version's, and drop everything computed with the old ones.

        Returns the manifest of what the engine then holds of the tensors that travelled, read back from the memory of
        all its ranks. Another thread's generation changes to it as `rollout.on_new_weights` says; with `finish`
        WeightSyncError is raised while there is one.
        """
        return self._handover.give(offer)

    def held(self, published: WeightManifest) -> WeightManifest:
        """Return what the engine holds under the published names, read from the memory of all its ranks."""
        self._holding.require(Held.WEIGHTS, "read its weights")
        return self._manifest(published, tuple(published.tensors), self._ask_ranks("ral_held", published))

    def hold(self, held: Held) -> None:
        """Keep this on the GPU. What was given up comes back empty: after WEIGHTS, new ones must be loaded.

        On CPU vLLM keeps its memory, and only goes through the states.
        """
        with self._holding.changing(held):  # vLLM only warns of a call that does nothing
            if held is Held.NOTHING:
                self._llm.sleep(level=2)
            elif held is Held.WEIGHTS:
                self._llm.wake_up(tags=["weights"])
            else:
                self._llm.wake_up(tags=["kv_cache"])

    @contextmanager
    def _aborting(self, running: Mapping[str, object]) -> Iterator[None]:
        """Leave no request in the engine when the caller stops listening or a gate fails."""
        try:
            yield
        finally:
            if running:
                self._llm.llm_engine.abort_request(list(running))

    def _load(self, offer: Offer) -> WeightManifest:
        self._holding.require(Held.WEIGHTS, "load weights")
        ranks = self._ask_ranks("ral_load", offer)
        self._drop_caches()
        self._llm.llm_engine.set_weight_version(str(offer.manifest.version))
        return self._manifest(offer.manifest, offer.names, ranks)

    def _manifest(self, published: WeightManifest, names: Sequence[str], ranks: Sequence[HeldParts]) -> WeightManifest:
        """Return what the ranks hold; tensors that vLLM does not use and has no place for count as held."""
        unused = {name: published.tensors[name] for name in names if self._family.engine_names.of(name) is None}
        found = held_manifest(published, [name for name in names if name not in unused], ranks)
        return replace(found, tensors={**found.tensors, **unused})

    def _ask_ranks(self, method: str, *arguments: Any) -> list[HeldParts]:
        answers = self._llm.collective_rpc(method, args=arguments)
        for answer in answers:
            if isinstance(answer, RalError):
                raise answer
        return answers

    def _drop_caches(self) -> None:
        # All three, and on the engine, whose scheduler must know which images are encoded no longer. Sequences under
        # way are computed again from their first token, so each next one comes from the new weights alone.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise WeightSyncError("the engine refused to drop its prefix cache, which holds keys of the old weights")
        self._llm.llm_engine.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def _submit(self, prompt: Prompt, index: int, sampling: Sampling, inputs: dict[str, Any]) -> str:
        if prompt.id not in inputs:
            inputs.clear()
            inputs[prompt.id] = self._processed(prompt)
        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=completion_seed(sampling.seed, prompt.id, index),
            logprobs=sampling.top_tokens,  # beside the sampled token's
            logit_bias=dict.fromkeys(self._banned, _BAN),
            detokenize=self._stop_text is not None,
            stop=self._stop_text,
            stop_token_ids=sorted(self._stop_ids),
            skip_special_tokens=False,  # the tag that ends an answer may be one
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request_id = f"{prompt.id}#{index}"
        self._llm.llm_engine.add_request(request_id, inputs[prompt.id], parameters)
        return request_id

    def _processed(self, prompt: Prompt) -> Any:
        """The prompt as vLLM's engine takes it, its media preprocessed."""
        check_prompt_length(prompt, self._max_model_len)
        check_media_tokens(prompt, self._family)
        request: dict[str, Any] = {"prompt_token_ids": list(prompt.engine_token_ids)}
        for kind in MAX_MEDIA:
            if media := [medium for medium in prompt.media if medium.kind == kind]:
                request.setdefault("multi_modal_data", {})[kind] = [self._opened(medium) for medium in media]
                request.setdefault("multi_modal_uuids", {})[kind] = [_uuid(medium) for medium in media]
        (processed,) = self._llm.llm_engine.renderer.render_cmpl([request])
        return processed

    def _opened(self, media: Media) -> Any:
        pixels = self._media.open(media) if media.clip is None else self._media.frames(media)
        return self._family.engine_media(media, pixels)

    def _completion(self, prompt: Prompt, index: int, output: Any, sampling: Sampling) -> Completion:
        check_prompt_ids(prompt, self._family.seen_ids(output.prompt_token_ids))
        result = output.outputs[0]
        token_ids = tuple(result.token_ids)
        first, *later = result.weight_versions
        completion = Completion(
            prompt_id=prompt.id,
            index=index,
            token_ids=token_ids,
            log_probs=tuple(at[token].logprob for token, at in zip(token_ids, result.logprobs, strict=True)),
            text=prompt.opening + self._family.text(token_ids),
            finish_reason=FinishReason(result.finish_reason),
            weight_version=int(first.version),
            top=_top_tokens(token_ids, result.logprobs, sampling.top_tokens) if sampling.top_tokens else None,
            switches=tuple((span.start, int(span.version)) for span in later),
            seed=completion_seed(sampling.seed, prompt.id, index),
            first_token_s=output.metrics.first_token_latency,
        )
        check_completion(
            prompt,
            completion,
            banned_token_ids=self._banned,
            stop_token_ids=self._stop_ids,
            stop_text=self._stop_text,
        )
        return completion


def _uuid(media: Media) -> str:
    """Return the key of a medium in vLLM's caches: all that determines the encoder's input, and a video's rate."""
    return hashlib.sha256(repr(media).encode()).hexdigest()


def _top_tokens(token_ids: Sequence[int], reported: Sequence[Mapping[int, Any]], count: int) -> TokenRecord:
    """vLLM's most likely tokens per position, the sampled one in the last one's place where it is not among them."""
    ids, log_probs = [], []
    for token, at in zip(token_ids, reported, strict=True):
        best = sorted(at, key=lambda other: -at[other].logprob)[:count]
        if token not in best:
            best[-1] = token
        ids.append(best)
        log_probs.append([at[other].logprob for other in best])
    return with_rest(np.array(ids, np.int32), np.array(log_probs, np.float32))
