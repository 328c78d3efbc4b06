"""Ranks that hold a micro-batch together compute what one rank does: values, attention rows, losses, gradients.

Each world of ranks is started once and goes through all cases, in float64 where the model's own operations allow it;
this file is also what the ranks run.
"""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

MODELS = {"one key head": 64, "three key heads": 192}
"""Widths; there is a query head for each 32, and half as many key heads."""
PROMPTS = {
    "packed groups": [("pictures", (5, 1, 7)), ("text", (2, 6)), ("picture", (4,))],
    "a video": [("video", (3, 4)), ("both", (6,))],
    "text alone": [("text", (9,))],
    "one response token": [("picture", (1,))],
    "recomputed": [("pictures", (5, 2)), ("video", (3,))],
}
WORLDS = [(2, "one key head"), (2, "three key heads"), (3, "three key heads")]
EXACT, SINGLE = 1e-10, 2e-5
"""Largest difference, relative to the largest value: of float64, and of what the head computes in float32."""


def compare(model: str, prompts: str, task: Path, group: Any) -> dict[str, tuple[float, float]]:
    """The largest difference of everything that the ranks of `group` compute of a case from what one rank does, and the
    largest value of it. Collective.
    """
    import torch

    from ral_system.attention.divergence import row_divergence
    from ral_system.attention.read import AttentionRead
    from tests.unit.models.test_shared_prompts import in_float64

    reads = [
        AttentionRead(layers="all"),
        AttentionRead(rows="predicting", keys="visual", heads="each"),
        AttentionRead(rows="answer", keys="prompt", backend="dense"),
        AttentionRead(rows="instruction", layers="all", heads="each", backend="dense"),
    ]
    from ral_system.algorithms.token_read import Teacher, TokenRead
    from ral_system.data.collate import Collator
    from ral_system.media.store import MediaStore
    from ral_system.models.loading import load_family
    from ral_system.models.policy import PolicyModel

    folder = task / str(MODELS[model])
    family = load_family(folder)
    samples = pickle.loads((task / "samples.pickle").read_bytes())[prompts]  # noqa: S301 (this test wrote it)
    batch = Collator(family, MediaStore(task / "media"))(samples)

    def passed(sequence: Any) -> dict[str, Any]:
        noise = torch.Generator().manual_seed(0)

        def like(tensor: Any) -> Any:
            return torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype)

        policy = PolicyModel(in_float64(folder), family, temperature=0.7)
        if prompts == "recomputed":
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
        ranks = 1 if sequence is None else sequence.size
        if sequence is not None:
            policy.share(sequence)
        hidden: list[Any] = []
        policy.model.lm_head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        count, vocabulary = int(batch.response_mask.sum()), policy.vocabulary
        ids = torch.randint(20, vocabulary - 3, (count, 1), generator=noise) + torch.arange(3)  # none is banned
        log_q = torch.randn(count, vocabulary, generator=noise).log_softmax(-1)
        teacher = Teacher(log_q.split(batch.response_mask.sum(1).tolist()), "jsd", 0.5)
        output = policy(batch, reads, TokenRead(entropy=True, kept={"rollout": ids}, teacher=teacher))
        found: dict[str, Any] = {}
        tokens = output.tokens
        losses = {"hidden": 0.0, "attention": 0.0, "tokens": 0.0}
        weights = torch.randn(count, hidden[0].shape[1], generator=noise, dtype=torch.float64)
        if sequence is not None:
            from ral_system.models.own_tokens import OwnTokens

            weights = weights[OwnTokens(batch.packing, sequence).chosen]
        losses["hidden"] = (hidden[0] * weights).sum() * ranks  # of own tokens, not the same on all ranks
        values = {"log_probs": tokens.log_probs, "entropy": tokens.entropy, "kept": tokens.kept["rollout"]}
        assert tokens.divergence is not None
        for name, value in {**values, "teacher": tokens.divergence}.items():
            found[f"single {name}"] = value
            losses["tokens"] = losses["tokens"] + (value * like(value)).sum()
        found["single top1"] = tokens.top1.float()
        for i, read in enumerate(reads):
            for g, of_group in enumerate(output.attention[read]):
                for at, layer in enumerate(of_group.layers):
                    whole = torch.cat(list(of_group.policies(at)), dim=-2)
                    found[f"exact policy {i} {g} {at}"] = whole
                    if not len(of_group.rows):
                        continue
                    target = (whole + like(whole).abs()) / (1 + whole.sum(-1, keepdim=True))
                    target = target / target.sum(-1, keepdim=True)
                    if read.heads == "each" and sequence is not None:
                        target = target[sequence.own(len(target))]
                    divergence = row_divergence(
                        layer.query, layer.key, of_group.rows, target, scale=layer.scale, kind="jsd",
                        branches=of_group.branches, key_mask=of_group.key_mask, heads=read.heads,
                        backend=read.backend, sequence=sequence,
                    )  # fmt: skip
                    found[f"exact divergence {i} {g} {at}"] = divergence
                    losses["attention"] = losses["attention"] + (divergence * like(divergence)).sum()
        for name, loss in losses.items():
            policy.zero_grad(set_to_none=True)
            (loss / ranks).backward(retain_graph=True)
            for parameter, p in policy.named_parameters():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                if sequence is not None:
                    torch.distributed.all_reduce(gradient, group=sequence.group)
                kind = "single" if name == "tokens" else "exact"
                # the encoder's rotary embedding computes in float32
                kind = "encoder" if kind == "exact" and "visual" in parameter else kind
                found[f"{kind} gradient of {name} by {parameter}"] = gradient.clone()
        return {name: value.detach() for name, value in found.items()}

    alone, together = passed(None), passed(group)
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
    models = json.loads((task / f"world_{world_size}.json").read_text())
    found = {(model, prompts): compare(model, prompts, task, group) for model in models for prompts in PROMPTS}
    if rank == 0:
        (task / f"world_{world_size}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str, str], dict[str, tuple[float, float]]]:
    """Results by world size, model and prompts."""
    from ral_system.media.store import MediaStore
    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words

    task = tmp_path_factory.mktemp("sequence")
    for width in MODELS.values():
        build_tiny_model(task / str(width), words(), hidden=width, layers=2, vision_layers=1, seed=3)
    (task / "samples.pickle").write_bytes(pickle.dumps(draw(task / "64", MediaStore(task / "media"))))
    for world_size in sorted({world_size for world_size, _ in WORLDS}):
        models = [model for size, model in WORLDS if size == world_size]
        (task / f"world_{world_size}.json").write_text(json.dumps(models))
        run_ranks(__file__, task, world_size)
    found = {size: pickle.loads((task / f"world_{size}.pickle").read_bytes()) for size, _ in WORLDS}  # noqa: S301
    return lambda world_size, model, prompts: found[world_size][model, prompts]


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


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(("world_size", "model"), WORLDS)
def test_ranks_together_compute_what_one_does(results: Any, world_size: int, model: str, prompts: str) -> None:
    found = results(world_size, model, prompts)
    bounds = {"exact": EXACT, "encoder": 1e-7, "single": SINGLE}
    gradients: dict[str, float] = {}
    for name, (_, largest) in found.items():
        kind = name.partition(" by ")[0]
        gradients[kind] = max(gradients.get(kind, 0.0), largest)
    for name, (apart, _) in found.items():
        largest = gradients[name.partition(" by ")[0]]
        assert apart <= bounds[name.partition(" ")[0]] * max(1.0, largest), (name, apart, largest)
    assert all(gradients[f"exact gradient of {loss}"] > 1e-3 for loss in ("hidden", "attention"))


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
