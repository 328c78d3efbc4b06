"""Trains a tiny model until it says given texts word for word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ral_system.batches.collate import Collator
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.tasks.visual_search import Record
from ral_system.types import Sample


def learn(start: Path, folder: Path, texts: Sequence[tuple[Record, str, str]], media_folder: Path) -> None:
    """(record, what is asked beside its picture, what is to be said) → a model folder."""
    torch.manual_seed(0)
    family, media = load_family(start), MediaStore(media_folder)
    renderer, model = ChatRenderer(family, ""), load_model(start, dtype="float32")
    policy = PolicyModel(model, family, temperature=1.0)
    samples = []
    for i, (record, question, response) in enumerate(texts):
        pictures = [media.put(record.image)]
        prompt = renderer.prompt(id=str(i), kind="", question=question, answer="", media=pictures)
        samples.append(Sample(str(i), prompt, renderer.response(response)))
    batch = Collator(family, media)(tuple(samples))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        output = policy(batch)
        loss = -output.log_probs[batch.response_mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01 and bool(output.top1[batch.response_mask].all()):
            break
    else:
        raise AssertionError(f"not learned by heart: loss {float(loss):.3f}")
    model.save_pretrained(folder)
    family.processor.save_pretrained(folder)
