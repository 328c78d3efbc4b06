"""Tiny models of the families that see pictures in tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.gemma3_model import build_gemma3
from tests.internvl_model import build_internvl
from tests.llava_onevision_model import build_llava_onevision
from tests.smolvlm_model import build_smolvlm


@dataclass(frozen=True)
class Tiled:
    """How to build one, and whether it reads videos."""

    build: Callable[..., Any]
    videos: bool
    in_vllm: bool = True
    """Whether vLLM computes the same on a CPU."""


TILED = {
    "internvl": Tiled(build_internvl, videos=True),
    "llava_onevision": Tiled(build_llava_onevision, videos=True),
    "gemma3": Tiled(build_gemma3, videos=False, in_vllm=False),
    # 27 patches along a side, as SmolVLM2-2.2B has them, where vLLM's rounding moves one
    "smolvlm": Tiled(partial(build_smolvlm, side=27, scale=9, patch_px=2, edge_tiles=2), videos=False),
}
