"""Tiny models of the families that see pictures in tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.internvl_model import build_internvl


@dataclass(frozen=True)
class Tiled:
    """How to build one, and whether it reads videos."""

    build: Callable[..., Any]
    videos: bool


TILED = {"internvl": Tiled(build_internvl, videos=True)}
