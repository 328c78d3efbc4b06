"""Reports of a run in progress, written during training."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from ral_system.report.write import write_run_report


class ReportWriter:
    """Writes a run's report in a separate thread: it reads everything that was logged, so it takes longer and longer.

    Leaving the context waits for a report under way. An error in one is raised by the next request, or at the end.
    """

    def __init__(self, root: Path, cache_gib: float) -> None:
        self._root, self._cache_gib = root, cache_gib
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._writing: Future[Path] | None = None

    def request(self) -> None:
        """Start to write the report, unless one is being written."""
        if self._writing is not None:
            if not self._writing.done():
                return
            self._writing.result()
        self._writing = self._thread.submit(write_run_report, self._root, self._cache_gib)

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if self._writing is not None and error is None:
            self._writing.result()
