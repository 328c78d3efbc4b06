"""Ranks that hold a micro-batch together compute what one rank does: values, attention rows, losses, gradients.

Each world of ranks is started once and goes through all cases, in float64 where the model's own operations allow it;
this file is also what the ranks run.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

Together = tuple[float, float]
"""The largest difference of what ranks compute together from what one does, and the largest value of it."""
MODELS = {"one key head": 64, "three key heads": 192, "Qwen3-VL": None, "GLM-4V": None}
"""Widths of Qwen2.5-VL, which has a query head for each 32 and half as many key heads; and other families."""
PROMPTS = {
    "packed groups": [("pictures", (5, 1, 7)), ("text", (2, 6)), ("picture", (4,))],
    "a video": [("video", (3, 4)), ("both", (6,))],
    "text alone": [("text", (9,))],
    "one response token": [("picture", (1,))],
    "recomputed": [("pictures", (5, 2)), ("picture", (3,))],
}
WORLDS = {2: list(MODELS), 3: ["three key heads"]}
CASES = [
    pytest.param(size, model, prompts, marks=pytest.mark.long if size == 3 else ())
    for size, models in WORLDS.items()
    for model in models
    for prompts in PROMPTS
    if model != "GLM-4V" or prompts in ("a video", "recomputed")  # whose encoder and deals are Qwen3-VL's
]
BOUNDS = {"exact": 1e-10, "encoder": 1e-7, "single": 2e-5}
"""Largest difference, relative to the largest value: in float64; for weights of the encoder, whose rotary embedding
computes in float32; and for the head's values, which are float32.
"""


class Outcome:
    """What a policy computes of a batch, on one rank or together with others."""

    def __init__(self, folder: Path, batch: Any, sequence: Any, *, recompute: bool) -> None:
        import torch

        from ral_system.models.loading import load_family
        from ral_system.models.policy import PolicyModel
        from tests.unit.models.test_shared_prompts import in_float64

        self.batch, self.sequence, self.found = batch, sequence, {}
        self.noise = torch.Generator().manual_seed(0)
        self.policy = PolicyModel(in_float64(folder), load_family(folder), temperature=0.7)
        if recompute:
            self.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        if sequence is not None:
            self.policy.share(sequence)

    def like(self, tensor: Any) -> Any:
        """Noise, the same on every rank."""
        import torch

        return torch.randn(tensor.shape, generator=self.noise, dtype=tensor.dtype)

    def tokens(self) -> Any:
        """Everything that is read of the distributions."""
        import torch

        from ral_system.algorithms.token_read import Teacher, TokenRead

        lengths = self.batch.response_mask.sum(1).tolist()
        ids = torch.randint(20, self.policy.vocabulary - 3, (sum(lengths), 1), generator=self.noise) + torch.arange(3)
        log_q = torch.randn(sum(lengths), self.policy.vocabulary, generator=self.noise).log_softmax(-1)
        return TokenRead(entropy=True, kept={"rollout": ids}, teacher=Teacher(log_q.split(lengths), "jsd", 0.5))

    def run(self, reads: Any) -> dict[str, Any]:
        """Values, and gradients of weighted sums of them."""
        hidden: list[Any] = []
        hook = self.policy.model.lm_head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        output = self.policy(self.batch, reads, self.tokens())
        hook.remove()
        losses = {
            "hidden": self.hidden_loss(hidden[0]),
            "tokens": self.tokens_loss(output.tokens),
            "records": sum(self.records_loss(i, output.attention[read]) for i, read in enumerate(reads)),
            "attention": sum(self.attention_loss(read, i, output.attention[read]) for i, read in enumerate(reads)),
        }
        for name, loss in losses.items():
            self.differentiate(name, loss)
        return {name: value.detach() for name, value in self.found.items()}

    def encoded(self, samples: Any, store: Any) -> dict[str, Any]:
        """Encode media with a frozen encoder, in passes of few tokens."""
        import torch

        from ral_system.batches.features import FeatureExtractor
        from ral_system.training.frozen_vision import FrozenVision

        vision = FrozenVision(self.policy, FeatureExtractor(self.policy.family, store), torch.device("cpu"), 20)
        vision.encode([[samples]], 0)
        streams = {m: seen if isinstance(seen, tuple) else (seen,) for m, seen in vision.encoded.items()}
        return {f"exact encoded {m.digest} {i}": value for m, seen in streams.items() for i, value in enumerate(seen)}

    def hidden_loss(self, hidden_NE: Any) -> Any:
        """Loss of the states that the head reads; each rank has those of its own tokens."""
        import torch

        from ral_system.models.own_tokens import OwnTokens

        count = int(self.batch.response_mask.sum())
        weights_NE = torch.randn(count, hidden_NE.shape[1], generator=self.noise, dtype=torch.float64)
        if self.sequence is None:
            return (hidden_NE * weights_NE).sum()
        own = OwnTokens(self.batch.packing, self.sequence)
        return (hidden_NE * weights_NE[own.chosen]).sum() * self.sequence.size

    def tokens_loss(self, values: Any) -> Any:
        """Loss of all that was read of the distributions."""
        read = {"log_probs": values.log_probs, "entropy": values.entropy, "kept": values.kept["rollout"]}
        self.found["single top1"] = values.top1.float()
        self.found |= {f"single {name}": value for name, value in {**read, "teacher": values.divergence}.items()}
        return sum((value * self.like(value)).sum() for value in (*read.values(), values.divergence))

    def attention_loss(self, read: Any, number: int, groups: Any) -> Any:
        """Loss of every layer's divergence from a target, and of what guidance takes of its heads."""
        import torch

        from ral_system.attention.divergence import row_divergence
        from ral_system.attention.mean_attention import log_mean_attention

        loss: Any = 0.0
        for g, group in enumerate(groups):
            for at, layer in enumerate(group.layers):
                whole = torch.cat(list(group.policies(at)), dim=-2)
                self.found[f"exact policy {number} {g} {at}"] = whole
                if not len(group.rows):
                    continue
                target = (whole + self.like(whole).abs()) / (1 + whole.sum(-1, keepdim=True))
                target = target / target.sum(-1, keepdim=True)
                if read.heads == "each" and self.sequence is not None:
                    target = target[self.sequence.own(len(target))]
                options = {"branches": group.branches, "key_mask": group.key_mask, "backend": read.backend}
                values = row_divergence(
                    *(layer.query, layer.key, group.rows, target),
                    **{"scale": layer.scale, "kind": "jsd", "heads": read.heads, "sequence": self.sequence, **options},
                )
                first_T = torch.arange(len(layer.key)) < 4
                mean_H = log_mean_attention(layer, group.rows, first_T, branches=group.branches)[0]
                mean_1H = group.all_heads(mean_H[None])
                for name, value in (("divergence", values), ("mean", mean_1H)):
                    self.found[f"exact {name} {number} {g} {at}"] = value
                    loss = loss + (value * self.like(value)).sum()
        return loss

    def records_loss(self, number: int, groups: Any) -> Any:
        """Loss of every row's divergence from a record, which is float32; of some reads from their top entries."""
        import torch

        from ral_system.attention.record import record_attention

        loss: Any = 0.0
        for g, group in enumerate(groups):
            records, ranks = [], 1 if self.sequence is None else self.sequence.size
            for response, (rows, length) in enumerate(zip(group.counts, group.group.responses, strict=True)):
                tokens = group.group.prompt + length
                heads = (group.layers[0].query.shape[1] * ranks,) if group.heads == "each" else ()
                policy = torch.rand(*heads, rows, tokens, generator=self.noise)
                kept = {"top_k": 5 if number % 2 else None, "dtype": torch.float32}
                record = record_attention([policy / policy.sum(-1, keepdim=True)], version=0, tokens=tokens, **kept)
                records.append([record] * len(group.layers))
                group.check(response, records[-1], 0)
            values = group.divergence(records, "jsd")
            self.found[f"single divergence from records {number} {g}"] = values
            loss = loss + (values * self.like(values)).sum()
        return loss

    def differentiate(self, name: str, loss: Any) -> None:
        """Each rank takes its part of the loss; gradients are added up."""
        import torch

        self.policy.zero_grad(set_to_none=True)
        (loss / (1 if self.sequence is None else self.sequence.size)).backward(retain_graph=True)
        for weight, parameter in self.policy.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if self.sequence is not None:
                torch.distributed.all_reduce(gradient, group=self.sequence.group)
            kind = "single" if name in ("tokens", "records") else "encoder" if "visual" in weight else "exact"
            self.found[f"{kind} gradient of {name} by {weight}"] = gradient.clone()


def compare(model: str, prompts: str, task: Path, group: Any) -> dict[str, Together]:
    """Compare one rank with the ranks of `group`, which all call this."""
    from ral_system.attention.read import AttentionRead
    from ral_system.batches.collate import Collator
    from ral_system.media.store import MediaStore
    from ral_system.models.loading import load_family

    folder = task / model
    samples = pickle.loads((task / f"{model}.pickle").read_bytes())[prompts]  # noqa: S301 (this test wrote it)
    store = MediaStore(task / "media")
    batch = Collator(load_family(folder), store)(samples)
    reads = [
        AttentionRead(layers="all"),
        AttentionRead(rows="predicting", keys="visual", heads="each"),
        AttentionRead(rows="answer", keys="prompt", backend="dense"),
        AttentionRead(rows="instruction", layers="all", heads="each", backend="dense"),
    ]
    found = []
    for sequence in (None, group):
        outcome = Outcome(folder, batch, sequence, recompute=prompts == "recomputed")
        found.append(outcome.encoded(samples, store) | outcome.run(reads))
    alone, together = found
    assert alone.keys() == together.keys()
    return {
        name: (float((value - together[name]).abs().max()), float(value.abs().max())) if value.numel() else (0.0, 1.0)
        for name, value in alone.items()
    }


def work(task: Path, rank: int, world_size: int, port: int) -> None:
    """One rank; the first one writes the results."""
    become_rank(rank, world_size, port)
    import torch

    from ral_system.attention.sequence import SequenceRanks

    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    group = SequenceRanks(rank, world_size, torch.distributed.group.WORLD)  # type: ignore[arg-type]
    cases = json.loads((task / f"world_{world_size}.json").read_text())
    found = {(model, prompts): compare(model, prompts, task, group) for model, prompts in cases}
    if rank == 0:
        (task / f"world_{world_size}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    commands: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[tuple[int, str, str], dict[str, Together]]:
    """Results of the chosen cases."""
    from ral_system.media.store import MediaStore
    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words
    from tests.glm4v_model import build_glm4v
    from tests.qwen3_model import build_qwen3_vl

    task = tmp_path_factory.mktemp("sequence")
    for model, width in MODELS.items():
        if width is not None:
            build_tiny_model(task / model, words(), hidden=width, layers=2, vision_layers=1, seed=3)
    build_qwen3_vl(task / "Qwen3-VL")
    build_glm4v(task / "GLM-4V")
    for model in MODELS:
        (task / f"{model}.pickle").write_bytes(pickle.dumps(draw(task / model, MediaStore(task / "media"))))
    items = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = [tuple(item.callspec.params[name] for name in ("world_size", "model", "prompts")) for item in items]  # type: ignore[attr-defined]
    found = {}
    for world_size in WORLDS:
        cases = [(model, prompts) for size, model, prompts in chosen if size == world_size]
        if not cases:
            continue
        (task / f"world_{world_size}.json").write_text(json.dumps(cases))
        run_ranks(commands, __file__, task, world_size)
        of_world = pickle.loads((task / f"world_{world_size}.pickle").read_bytes())  # noqa: S301
        found |= {(world_size, *case): differences for case, differences in of_world.items()}
    return found


def draw(model: Path, media: Any) -> dict[str, tuple[Any, ...]]:
    """Samples of every case: questions about noise, answered by some words."""
    import numpy as np
    from PIL import Image

    from ral_system.data.chat import ChatRenderer
    from ral_system.media.videos import VideoLimits
    from ral_system.models.loading import load_family
    from ral_system.types import Sample, VideoSampling
    from tests.unit.media.clips import clip, noise

    draw, family = np.random.default_rng(0), load_family(model)
    pictures = [
        media.put(Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)))
        for height, width in ((84, 56), (56, 56), (112, 84))
    ]
    video = media.put_video(clip(noise(7, 6, 56, 84)), VideoSampling(1.0, 6, 2), VideoLimits())
    kinds = {"pictures": pictures, "picture": pictures[:1], "text": [], "video": [video], "both": [pictures[1], video]}
    renderer = ChatRenderer(family, "answer")
    ids = family.tokenizer.convert_tokens_to_ids(["<think>", "a1", "</think>", "<answer>", "red", "</answer>", "red"])
    found = {}
    for name, groups in PROMPTS.items():
        samples = []
        for g, (kind, lengths) in enumerate(groups):
            prompt = renderer.prompt(id=f"{g}", kind="", question="what is at a1 ?", answer="red", media=kinds[kind])
            for i, length in enumerate(lengths):
                response = tuple(int(token) for token in draw.choice(ids, length))
                samples.append(Sample(f"{g}#{i}", prompt, response, advantage=1.0))
        found[name] = tuple(samples)
    return found


@pytest.mark.parametrize(("world_size", "model", "prompts"), CASES)
def test_ranks_together_compute_what_one_does(results: Any, world_size: int, model: str, prompts: str) -> None:
    found: dict[str, Together] = results[world_size, model, prompts]
    scales: dict[str, float] = {}
    for name, (_, largest) in found.items():
        quantity = name.partition(" by ")[0]
        scales[quantity] = max(scales.get(quantity, 1.0), largest)
    for name, (apart, _) in found.items():
        assert apart <= BOUNDS[name.partition(" ")[0]] * scales[name.partition(" by ")[0]], name
    for loss, kind in (("hidden", "exact"), ("attention", "exact"), ("tokens", "single"), ("records", "single")):
        assert max(largest for name, (_, largest) in found.items() if f"{kind} gradient of {loss}" in name) > 1e-3


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
