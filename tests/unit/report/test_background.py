"""Reports beside training: one at a time, and no error is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ral_system.report.background import ReportWriter


def test_one_report_at_a_time_and_the_last_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, written = threading.Semaphore(0), threading.Semaphore(0), []

    def write(root: Path, cache_gib: float) -> Path:
        begun.release()
        assert go_on.acquire(timeout=30)
        written.append((root, cache_gib))
        return root

    monkeypatch.setattr("ral_system.report.background.write_run_report", write)
    with ReportWriter(tmp_path, 0.5) as reports:
        reports.request()
        assert begun.acquire(timeout=30)
        reports.request()  # while one is being written: nothing
        assert not written
        go_on.release()
        assert reports._writing is not None
        reports._writing.result(timeout=30)
        reports.request()
        go_on.release()
    assert written == [(tmp_path, 0.5)] * 2


def test_an_error_is_raised_by_the_next_request_or_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, cache_gib: float) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr("ral_system.report.background.write_run_report", fail)
    with pytest.raises(OSError, match="disk full"), ReportWriter(tmp_path, 0.0) as reports:
        reports.request()
    with ReportWriter(tmp_path, 0.0) as reports:
        reports.request()
        assert reports._writing is not None
        reports._writing.exception(timeout=30)
        with pytest.raises(OSError, match="disk full"):
            reports.request()
        reports._writing = None
    with pytest.raises(KeyboardInterrupt), ReportWriter(tmp_path, 0.0) as reports:  # what ended training counts
        reports.request()
        raise KeyboardInterrupt
