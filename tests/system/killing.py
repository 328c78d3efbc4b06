"""Ends runs in the middle."""

import json
import signal
import subprocess
import time

import pytest


def kill_when_logged(process: subprocess.Popen, run, stage: str, step: int, how: signal.Signals) -> int:
    """Send the signal as soon as the step is in metrics.jsonl; the exit code."""
    deadline = time.monotonic() + 400
    metrics = run.folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        for line in metrics.read_text().splitlines()[-3:] if metrics.exists() else ():
            if line.endswith("}") and (record := json.loads(line))["stage"] == stage and record["step"] >= step:
                process.send_signal(how)
                _, err = process.communicate(timeout=60)
                assert "Traceback" not in err
                return process.returncode
        time.sleep(0.002)
    process.kill()
    pytest.fail(f"{stage} step {step} was not seen; exit {process.returncode}: {process.communicate()[1][-3000:]}")
