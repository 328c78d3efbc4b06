"""vLLM may look at everything that modules hold."""

import sys
from collections.abc import Mapping

import numba  # noqa: F401 (imports llvmlite)

from ral_system.rollout.module_scan import llvmlite_hidden


def odd() -> list[str]:
    """Names of objects of llvmlite's modules whose `__dict__` is none, as vLLM goes over them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("llvmlite")]
    values = [value for module in modules for value in vars(module).values() if hasattr(value, "__dict__")]
    return [type(value).__name__ for value in values if not isinstance(vars(value), Mapping)]


def test_what_has_no_true_dict_is_hidden_meanwhile() -> None:
    before = odd()
    assert before
    with llvmlite_hidden():
        assert not odd()
    assert odd() == before
