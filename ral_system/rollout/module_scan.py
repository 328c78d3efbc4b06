"""What a worker of vLLM must not meet when it starts on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = "llvmlite.binding.ffi"


@contextmanager
def llvmlite_hidden() -> Iterator[None]:
    """Take a module of llvmlite, which numba imports, off the list of modules meanwhile.

    vLLM 0.32 looks for its kernels in the `__dict__` of every object of every module. One of llvmlite's objects takes
    any name for a function of its library, `__dict__` too, and vLLM ends with an AttributeError.
    """
    module = sys.modules.pop(_LIBRARY, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[_LIBRARY] = module
