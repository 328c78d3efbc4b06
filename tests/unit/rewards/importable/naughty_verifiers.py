"""Verifiers that misbehave on request: the completion's text says how. Imported by the verifier processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.judge import judge
from ral_system.rewards.response import Response

PIDS = 2**30
"""Every process id is below it."""


def obedient(response: Response, config: JudgeConfig) -> dict[str, float]:
    command, _, argument = response.text.partition(":")
    if command == "hang":
        time.sleep(3600)
    if command == "spin":
        while True:
            pass
    if command == "exit":
        os._exit(int(argument))
    if command == "sys.exit":
        sys.exit(3)
    if command == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "raise":
        raise RuntimeError(argument)
    if command == "print":
        print('{"parts": {"correctness": 0.5}}')
        sys.stdin.read()
    if command == "nan":
        return {"correctness": float("nan")}
    if command == "huge":
        return {"correctness": 7.0}
    if command == "child":  # leaves a process of its own behind
        started = subprocess.Popen(["sleep", "3600"])
        Path(argument).write_text(str(started.pid))
        time.sleep(3600)
    if command == "session":  # the same, out of reach of its group, and orphaned
        code = "import subprocess as s; print(s.Popen(['sleep', '3600'], start_new_session=True, stdout=s.DEVNULL).pid)"
        Path(argument).write_text(subprocess.check_output([sys.executable, "-c", code], text=True))
        time.sleep(3600)
    if command == "leave":  # a server, out of reach of its group
        server = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        (partial := Path(f"{argument}.partial")).write_text(str(server.pid))
        partial.rename(argument)
    if command == "descriptors":  # whatever is open
        for descriptor in range(3, 12):
            with contextlib.suppress(OSError):
                os.write(descriptor, argument.encode())
    if command == "allocate":
        bytearray(int(argument) * 2**30)
    if command == "fork":  # both go on as if they were the only one
        os.fork()
    if command == "pid":
        return {"correctness": 1.0, "pid": os.getpid() / PIDS}
    return judge(response, config)
