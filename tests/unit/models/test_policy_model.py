from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ral_system.attention.policy import attention_policy, dense_policy
from ral_system.attention.probe import AttentionProbe, PackedRows
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.commands import TrainConfig
from ral_system.errors import ConfigError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel, PolicyOutput, read_rows
from ral_system.planning.outline import OutlinedRanks
from ral_system.scoring.build import build_policy
from ral_system.training.gradient_share import squared_norms
from ral_system.training.objective import Objective
from ral_system.types import Sample
from tests.unit.eager import media_inputs, token_types

TEMPERATURE = 0.7
GENERATED = AttentionRead()


class Bench:
    """The tiny model as a policy, and the same model to be read slowly."""

    def __init__(self, folder: Path, media: MediaStore, samples: list[Sample]) -> None:
        self.model, self.family = load_model(folder, dtype="float32"), load_family(folder)
        self.banned = self.family.banned_ids
        self.collate = Collator(self.family, media)
        self.samples = samples

    @torch.no_grad()
    def run(self, samples: list[Sample], *reads: AttentionRead) -> PolicyOutput:
        return PolicyModel(self.model, self.family, temperature=TEMPERATURE)(self.collate(tuple(samples)), reads)

    @torch.no_grad()
    def slow_log_softmax(self, sample: Sample) -> Tensor:
        """All logits of one unpadded sequence, then the rows that predict its response: [R, V]."""
        batch = self.collate((sample,))
        logits = self.model(input_ids=batch.input_ids[None], **media_inputs(batch)).logits[0]
        scaled = logits / TEMPERATURE
        for token in self.banned:
            scaled[:, token] = -torch.inf
        return scaled.log_softmax(-1)[len(sample.prompt.token_ids) - 1 : -1]


def read(output: PolicyOutput, index: int, what: AttentionRead = GENERATED) -> Tensor:
    """The attention policy of a sequence's rows: [R, T]."""
    return torch.cat(list(output.attention[what][index].policies(0)))


@pytest.fixture(scope="module")
def bench(tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]]) -> Bench:
    return Bench(tiny_model, media, draw_samples(7))


def test_equals_full_logits_gathered_slowly(bench: Bench) -> None:
    found = bench.run(bench.samples, GENERATED)
    longest = max(len(s.response_token_ids) for s in bench.samples)
    assert found.log_probs.shape == found.entropy.shape == found.top1.shape == (7, longest)
    assert len({len(s.response_token_ids) for s in bench.samples}) > 2  # padding is at work
    for i, sample in enumerate(bench.samples):
        length = len(sample.response_token_ids)
        rows = bench.slow_log_softmax(sample)
        expected = [rows[t, token].item() for t, token in enumerate(sample.response_token_ids)]
        assert found.log_probs[i, :length].tolist() == pytest.approx(expected, abs=1e-5)
        p = rows.exp()
        expected_entropy = -(p * rows.clamp(min=-1e30)).sum(-1)
        assert found.entropy[i, :length].tolist() == pytest.approx(expected_entropy.tolist(), abs=1e-5)
        assert found.top1[i, :length].tolist() == (rows.argmax(-1) == torch.tensor(sample.response_token_ids)).tolist()
        for padded in (found.log_probs, found.entropy, found.top1):
            assert not padded[i, length:].any()


def test_a_sample_alone_is_what_it_is_among_longer_ones(bench: Bench) -> None:
    together = bench.run(bench.samples, GENERATED)
    for i, sample in enumerate(bench.samples):
        alone = bench.run([sample], GENERATED)
        length = len(sample.response_token_ids)
        assert (alone.log_probs[0] - together.log_probs[i, :length]).abs().max() <= 5e-6
        assert read(together, i).shape == (length, sample.length)
        assert (read(alone, 0) - read(together, i)).abs().max() <= 1e-6


@pytest.mark.parametrize(("rows", "shift"), [("generated", 0), ("predicting", -1)])
def test_attention_rows_are_those_of_the_response(bench: Bench, rows: Any, shift: int) -> None:
    sample = bench.samples[2]
    batch = bench.collate((sample,))
    every_position = PackedRows((sample.length,), (torch.arange(sample.length),))
    with (
        torch.no_grad(),
        AttentionProbe(bench.family.attention_layers(bench.model)).capture(every_position) as (capture,),
    ):
        bench.model.model(input_ids=batch.input_ids[None], **media_inputs(batch))
    (at,) = capture.groups()
    every_row = attention_policy(at.query, at.key, torch.arange(sample.length), scale=at.scale)
    asked = AttentionRead(rows=rows)
    found = read(bench.run([sample], asked), 0, asked)
    first = len(sample.prompt.token_ids) + shift
    assert torch.allclose(found, every_row[first : first + len(sample.response_token_ids)], atol=1e-6)
    # the last key that a row may see is the position before it
    assert [int(row.nonzero().max()) for row in found] == [first + r - 1 for r in range(len(found))]


def test_attention_is_made_only_when_asked_for(bench: Bench) -> None:
    without = bench.run(bench.samples)
    assert not without.attention and not without.probed
    assert torch.equal(without.log_probs, bench.run(bench.samples, GENERATED).log_probs)


def test_several_reads_of_one_pass_are_what_each_is_alone(bench: Bench) -> None:
    """Rows, keys, layers and heads of their own; each policy has as many rows as it asked for."""
    reads = (
        GENERATED,
        AttentionRead(rows="instruction", layers="all"),
        AttentionRead(rows="predicting", keys="visual", layers=(0,), heads="each"),
    )
    together = bench.run(bench.samples, *reads)
    assert tuple(together.attention) == reads
    for one in reads:
        alone = bench.run(bench.samples, one)
        for i, sample in enumerate(bench.samples):
            layers = together.attention[one][i].layers
            assert len(layers) == (2 if one.layers == "all" else 1)
            questions, response = sample.prompt.question_positions, sample.response_token_ids
            assert len(layers[0].query) == len(questions if one.rows == "instruction" else response)
            assert torch.equal(read(together, i, one), read(alone, i, one))
    assert tuple(bench.run(bench.samples, GENERATED, GENERATED).attention) == (GENERATED,)
    of_heads = read(together, 0, reads[2])
    visual = [token == bench.family.visual_ids["image"] for token in bench.samples[0].prompt.token_ids]
    on_pictures = of_heads[..., : len(visual)][..., visual].sum(-1)
    assert of_heads.ndim == 3 and torch.allclose(on_pictures, torch.ones_like(on_pictures))


def test_a_policy_is_built_as_rollouts_are_drawn(tiny_model: Path, bench: Bench) -> None:
    policy = build_policy(tiny_model, torch.device("cpu"), GENERATED, dtype="float32", temperature=TEMPERATURE)
    tokenizer = policy.family.tokenizer
    for name in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"):
        assert tokenizer.convert_tokens_to_ids(name) in policy.banned_token_ids
    assert tokenizer.eos_token_id not in policy.banned_token_ids
    with torch.no_grad():
        found = policy(bench.collate(tuple(bench.samples)), [GENERATED])
    expected = bench.run(bench.samples, GENERATED)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert all(torch.equal(read(found, i), read(expected, i)) for i in range(len(bench.samples)))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("layers=[0,7]", r"algorithm.attention: layers=\[0, 7\]: the model has 2 layers, so no layer 7"),
        ("layers=[1,-1]", r"algorithm.attention: layers=\[1, -1\] names a layer of the model's 2 twice"),
    ],
)
def test_layers_that_the_model_does_not_have_are_one_line(
    tiny_model: Path, make_config: Callable[..., TrainConfig], override: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        settings = make_config(f"algorithm.attention.{override}").algorithm.attention
        build_policy(tiny_model, torch.device("cpu"), AttentionRead.of(settings), dtype="float32", temperature=1.0)


def test_a_family_that_cannot_share_its_encoder_works_on_ranks_of_their_own(bench: Bench) -> None:
    policy = PolicyModel(bench.model, bench.family, temperature=1.0)
    policy.family = SimpleNamespace(encode=lambda model, features: {"seen": features})  # type: ignore[assignment]
    assert policy.encode({"image": "pixels"}) == {"seen": {"image": "pixels"}}  # type: ignore[dict-item]
    message = r"^learner\.sequence_parallel=2: SimpleNamespace\.encode takes no `sequence`; set it to 1"
    with pytest.raises(ConfigError, match=message):
        policy.share(OutlinedRanks(0, 2))


def test_gradients_reach_vision_and_text(bench: Bench) -> None:
    policy = PolicyModel(bench.model, bench.family, temperature=1.0)
    output = policy(bench.collate(tuple(bench.samples[:2])), [GENERATED])
    assert not output.entropy.requires_grad
    output.log_probs.sum().backward()
    assert bench.model.lm_head.weight.grad.any()
    assert bench.model.model.visual.patch_embed.proj.weight.grad.any()
    bench.model.zero_grad(set_to_none=True)


def test_the_attention_terms_share_is_that_of_gradients_at_the_rows_queries(bench: Bench) -> None:
    """Against attention and log-probs read from one unpacked sequence's whole query, row by row."""
    sample = bench.samples[3]
    prompt, length = len(sample.prompt.token_ids), sample.length
    policy = PolicyModel(bench.model, bench.family, temperature=TEMPERATURE)
    whole = replace(GENERATED, whole=True)
    output = policy(bench.collate((sample,)), [whole])
    (attention,) = output.attention[whole]
    rows_RT = torch.rand(length - prompt, length, generator=torch.Generator().manual_seed(0))
    (at,) = attention.layers
    p_RT = dense_policy(at.query, at.key, attention.rows, at.scale, None, None, "mean")
    found = squared_norms(Objective(output.log_probs.sum(), {}, attention=(p_RT * rows_RT).sum()), output.probed)

    batch = bench.collate((sample,))
    with AttentionProbe(bench.family.attention_layers(bench.model)).capture(whole=True) as (capture,):
        logits = bench.model(input_ids=batch.input_ids[None], **media_inputs(batch), use_cache=False).logits[0]
    assert capture.query is not None and capture.key is not None
    scaled = logits[prompt - 1 : length - 1] / TEMPERATURE
    scaled[:, bench.banned] = -torch.inf
    token = scaled.log_softmax(-1).gather(-1, torch.tensor(sample.response_token_ids)[:, None]).sum()
    query, key = (t[0].transpose(0, 1) for t in (capture.query, capture.key))
    slow_RT = attention_policy(query, key, torch.arange(prompt, length), scale=capture.scale)
    expected = []
    for loss in (token, (slow_RT * rows_RT).sum()):
        (gradient,) = torch.autograd.grad(loss, capture.query, retain_graph=True)
        assert gradient[:, :, prompt:].any()
        expected.append(float(gradient[:, :, prompt:].double().square().sum()))
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_a_padded_batch(bench: Bench) -> None:
    """A function of log-probs and attention, packed by the policy and padded as transformers would have it."""
    samples = bench.samples[:4]
    lengths = [s.length for s in samples]
    policy = PolicyModel(bench.model, bench.family, temperature=TEMPERATURE)
    output = policy(bench.collate(tuple(samples)), [GENERATED])
    loss = output.log_probs.sum()
    for rows in output.attention[GENERATED]:
        (at,) = rows.layers
        policy_RT = dense_policy(at.query, at.key, rows.rows, at.scale, branches=None, key_mask=None, heads="mean")
        loss = loss + policy_RT.square().sum()
    bench.model.zero_grad(set_to_none=True)
    loss.backward()
    packed = {n: p.grad.clone() for n, p in bench.model.named_parameters() if p.grad is not None}

    batch, longest = bench.collate(tuple(samples)), max(lengths)

    def padded(packed_T: Tensor) -> Tensor:
        return torch.stack(
            [torch.nn.functional.pad(part, (0, longest - len(part))) for part in packed_T.split(batch.packing.lengths)]
        )

    with AttentionProbe(bench.family.attention_layers(bench.model)).capture(whole=True) as (capture,):
        logits = bench.model(
            input_ids=padded(batch.input_ids),
            attention_mask=padded(torch.ones_like(batch.input_ids)),
            mm_token_type_ids=padded(token_types(batch)),
            **batch.features,
            use_cache=False,
        ).logits
    assert capture.query is not None and capture.key is not None
    slow = torch.zeros(())
    for b, sample in enumerate(samples):
        prompt, length = len(sample.prompt.token_ids), sample.length
        scaled = logits[b, prompt - 1 : length - 1] / TEMPERATURE
        scaled[:, bench.banned] = -torch.inf
        targets = torch.tensor(sample.response_token_ids)
        slow = slow + scaled.log_softmax(-1).gather(-1, targets[:, None]).sum()
        query, key = (t[b, :, :length].transpose(0, 1) for t in (capture.query, capture.key))
        slow = slow + attention_policy(query, key, torch.arange(prompt, length), scale=capture.scale).square().sum()
    assert loss.item() == pytest.approx(slow.item(), rel=1e-5)
    bench.model.zero_grad(set_to_none=True)
    slow.backward()
    largest = max(g.abs().max().item() for g in packed.values())
    for name, parameter in bench.model.named_parameters():
        assert torch.allclose(packed[name], parameter.grad, rtol=1e-3, atol=1e-5 * largest), name  # type: ignore[arg-type]
    bench.model.zero_grad(set_to_none=True)


def test_rows_that_are_read_several_times_get_the_same_gradient_each_time() -> None:
    """Also by several threads of a CPU, where indexing fails."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (1024,), generator=generator)
    weights = torch.randn(1024, 64, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(20):
            x = torch.zeros(50, 64, requires_grad=True)
            read_rows(x, rows).backward(weights)
            gradients.append(x.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert torch.allclose(gradients[0], torch.zeros(50, 64).index_add(0, rows, weights))
