"""Imports of torch, transformers, DeepSpeed and vLLM, which make 400,000 to 700,000 objects that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Turn the garbage collector off during imports, and exempt what they created from later collections.

    Python would traverse it several times during the imports, and again at every `gc.collect()`: vLLM calls that five
    times when it starts, DeepSpeed and we whenever memory is given back. Everything that is alive at the end is exempt
    (`gc.freeze`), so use it before anything large is made.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
