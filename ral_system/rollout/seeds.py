"""Where the randomness of a completion comes from: its own seed, so it does not depend on its neighbours."""

from __future__ import annotations

import hashlib


def completion_seed(seed: int, prompt_id: str, index: int) -> int:
    """A 63-bit seed, the same in every process and Python version (`hash()` is salted per process).

    Example: `completion_seed(7, "train/17", 3)`
    """
    digest = hashlib.sha256(f"{seed}\x00{prompt_id}\x00{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
