"""Imports of torch, transformers, DeepSpeed and vLLM, which make 400,000 to 700,000 objects that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Look for no garbage during imports, and later not among what they made.

    Python would look through all of it several times during the imports, and again at every `gc.collect()`: vLLM
    calls it five times when it starts, DeepSpeed and we whenever memory is given back. Everything that is alive at the
    end is taken for permanent (`gc.freeze`), so use it before anything large is made.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
