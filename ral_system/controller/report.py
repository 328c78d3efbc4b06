"""The report of a run, with frames of its videos."""

from __future__ import annotations

from pathlib import Path

from ral_system.media.store import node_store
from ral_system.observability.report import write_report


def write_run_report(root: Path, cache_gib: float = 0.0) -> Path:
    """`write_report` of the run in `root`. With a cache, videos that this node's processes decoded are not decoded
    again.
    """
    return write_report(root, node_store(root / "media", cache_gib).frames)
