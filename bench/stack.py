"""A stack of decoder layers, with and without the term on its last layer, and the scoring of old attention."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from bench.measure import PeakMemory, in_child, reason, release, time_in_turns
from bench.plan import LEARNER_LAYERS, Plan
from bench.terms import forward_backward, make_inputs, random_target, unavailable
from ral_system.attention.group import GroupAttention
from ral_system.attention.metrics import row_statistics
from ral_system.attention.probe import IMPLEMENTATION, AttentionProbe, PackedRows
from ral_system.attention.provenance import key_provenance
from ral_system.attention.record import record_attention

Say = Callable[[str], None]


def measure_stack(plan: Plan, say: Say) -> list[dict[str, Any]]:
    """A record for every number of tokens: raw times, what is computed from them, and the reason of a failure."""
    records = []
    for tokens in plan.stack_tokens:
        say(f"{plan.layers} layers, {tokens:,} tokens")
        backend = "triton" if unavailable("triton", plan.device) is None else "chunked"
        record: dict[str, Any] = {"tokens": tokens, "layers": plan.layers, "backend": backend, "failure": None}
        try:
            record |= _measure(plan, tokens, backend)
        except Exception as error:  # a size that does not fit must not end the benchmark
            record["failure"] = reason(error)
            say(f"  {record['failure']}")
        release()
        records.append(record)
    return records


def _measure(plan: Plan, tokens: int, backend: Any) -> dict[str, Any]:
    peaks, why_not = {}, {}
    for name, has_term in (("without_term", False), ("with_term", True)):
        peaks[name], why = _step_peak(plan, tokens, backend, has_term)
        if why:
            why_not[f"step_peak_bytes {name}"] = why
    stack = _Stack(plan, tokens, backend)
    x = make_inputs(plan, tokens)
    calls = {
        "step_without_term_s": lambda: stack.step(with_term=False),
        "step_with_term_s": lambda: stack.step(with_term=True),
        "term_s": lambda: forward_backward(backend, x),
        "log_prob_pass_s": stack.log_prob_pass,
        "scoring_s": stack.score,
    }
    times, failures = time_in_turns(
        calls, plan.device, min_repeats=plan.min_repeats, max_repeats=plan.max_repeats, seconds=plan.seconds
    )
    step, log_probs = (_median(times, name) for name in ("step_without_term_s", "log_prob_pass_s"))
    with_term, term, scoring = (_median(times, name) for name in ("step_with_term_s", "term_s", "scoring_s"))
    full = LEARNER_LAYERS / plan.layers
    return {
        **times,
        "measured": {
            "term_share_of_step": _ratio(term, step),
            "step_with_term_over_without": _ratio(with_term, step),
            "step_peak_bytes": peaks,
            "extra_peak_bytes": None if why_not else peaks["with_term"] - peaks["without_term"],
            "scoring_share_of_log_prob_pass": _ratio(scoring, log_probs),
        },
        f"computed_for_{LEARNER_LAYERS}_layers": {
            "term_share_of_step": _ratio(term, step and step * full),
            "scoring_share_of_log_prob_pass": _ratio(scoring, log_probs and log_probs * full),
        },
        "failure": "; ".join(f"{name}: {why}" for name, why in (why_not | failures).items()) or None,
    }


def _step_peak(plan: Plan, tokens: int, backend: Any, with_term: bool) -> tuple[Any, str | None]:
    """Peak bytes of one step beyond model and inputs, or None and why they are not known."""
    if plan.device == "cpu":
        return in_child(step_peak, plan, tokens, backend, with_term)
    try:
        return step_peak(plan, tokens, backend, with_term), None
    except Exception as error:
        return None, reason(error)
    finally:
        release()


def step_peak(plan: Plan, tokens: int, backend: Any, with_term: bool) -> int:
    """Measure the peak in this process, which on CPU must be a fresh one."""
    stack = _Stack(plan, tokens, backend)
    small = stack if plan.device == "cuda" else _Stack(replace(plan, rows=8), 64, backend)
    small.step(with_term=with_term)  # what libraries load or keep does not count
    del small
    peak = PeakMemory(plan.device)
    stack.step(with_term=with_term)
    return peak.bytes()


class _Stack:
    """Decoder layers of random weights, without embedding and vocabulary head; the probe on the last."""

    def __init__(self, plan: Plan, tokens: int, backend: Any) -> None:
        config = Qwen2Config(
            hidden_size=plan.hidden,
            intermediate_size=plan.intermediate,
            num_attention_heads=plan.query_heads,
            num_key_value_heads=plan.key_heads,
            head_dim=plan.head_dim,
            num_hidden_layers=plan.layers,
            vocab_size=8,
            max_position_embeddings=max(32768, tokens),
            attn_implementation=IMPLEMENTATION,
        )
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(plan.torch_dtype)
            with torch.device(plan.device):
                self._model = Qwen2Model(config)
        finally:
            torch.set_default_dtype(default)
        self._probe = AttentionProbe([layer.self_attn for layer in self._model.layers])
        self._parameters = [p for p in self._model.layers.parameters() if p.requires_grad]
        random = torch.Generator(plan.device).manual_seed(0)
        shape = (1, tokens, plan.hidden)
        kind: dict[str, Any] = {"device": plan.device, "dtype": plan.torch_dtype, "generator": random}
        self._embeddings = torch.randn(shape, **kind)
        self._gradient = torch.randn(shape, **kind)
        self._rows = torch.arange(max(0, tokens - plan.rows), tokens, device=plan.device)
        self._record = record_attention(
            [random_target(self._rows, tokens, random)], version=0, tokens=tokens, top_k=None, dtype=torch.float32
        )
        self._tokens, self._backend = tokens, backend
        text = torch.zeros(tokens, dtype=torch.bool, device=plan.device)
        self._keys = key_provenance(text, (), system_tokens=1, prompt_tokens=max(1, tokens - plan.rows))
        with torch.no_grad():
            self._attention = self._forward()[1]

    def step(self, *, with_term: bool) -> None:
        """Do a learner's work for one sequence: the forward pass, and gradients of all weights."""
        hidden, attention = self._forward(with_attention=with_term)
        outputs, gradients = [hidden], [self._gradient]
        if attention is not None:
            found = attention.divergence([[self._record]], "jsd")
            outputs.append(found)
            gradients.append(torch.full_like(found, 1 / len(found)))
        torch.autograd.grad(outputs, self._parameters, gradients)

    @torch.no_grad()
    def log_prob_pass(self) -> None:
        """The pass whose last layer's query and key scoring reads."""
        self._forward(with_attention=False)

    def score(self) -> None:
        """The old attention of all rows, recorded and described as the learner does it."""

        def described() -> Iterator[Tensor]:
            assert self._attention is not None
            for block in self._attention.policies(0):
                row_statistics(block, self._keys)
                yield block

        record_attention(described(), version=0, tokens=self._tokens, top_k=None, dtype=torch.float32)

    def _forward(self, *, with_attention: bool = True) -> tuple[Tensor, GroupAttention | None]:
        rows = PackedRows((self._tokens,), (self._rows,)) if with_attention else None
        with self._probe.capture(rows) as (capture,):
            hidden = self._model(inputs_embeds=self._embeddings, use_cache=False).last_hidden_state
        if not with_attention:
            return hidden, None
        layers = tuple(capture.groups())
        return hidden, GroupAttention.alone(layers, self._rows, backend=self._backend)


def _median(times: dict[str, list[float]], name: str) -> float | None:
    return statistics.median(times[name]) if times.get(name) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else part / whole
