"""The reward of both sides: a function of the text alone that differs between responses of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIGNAL = "even_words"
"""Name by which `ral_system` knows the reward, as a signal that a package adds."""


def even_words(text: str) -> float:
    """Share of a response's words with an even number of letters, in [0, 1]. It varies even with random weights, so no
    side gets a batch without advantages."""
    words = text.split()
    return sum(len(word) % 2 == 0 for word in words) / len(words) if words else 0.0


def signal(response: Any, config: Any) -> float:
    """`even_words` in the form of `ral_system.reward_signals`."""
    return even_words(response.text)


def register(folder: Path) -> Path:
    """Write what makes `folder` on PYTHONPATH look like an installed package that adds the signal; return `folder`."""
    about = folder / "bench_peers-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-peers\nVersion: 1\n", encoding="utf-8")
    entry = f"[ral_system.reward_signals]\n{SIGNAL} = {__name__}:signal\n"
    (about / "entry_points.txt").write_text(entry, encoding="utf-8")
    return folder
