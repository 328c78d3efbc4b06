import signal
import subprocess
import sys

import pytest

WAITING = """
import time
from ral_system.config.commands import TrainConfig
from ral_system.launch.cli import run_with_config

def wait(config):
    print("waiting", flush=True)
    time.sleep(60)

run_with_config(wait, TrainConfig, about="Wait.")
"""


def ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [ignore, None], ids=["started_by_a_script_in_the_background", "started_by_hand"])
def test_a_signal_ends_a_command_with_one_line(number: signal.Signals, before) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, "experiment=smoke"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    ) as process:
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted; run the same command again to continue\n"
