"""Runs the installed commands, and files of tests as programs, in forks of a process that has imported torch,
transformers, DeepSpeed and the library already.

A command takes most of its time to import them. What runs is the command's own entry point, in a process and session
of its own, with the arguments, folder and environment that it is given; only the interpreter's start is shared.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    "deepspeed",
    "hydra",
    "rich.progress",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    "ral_system.controller.start",
    "ral_system.controller.rl",
    "ral_system.controller.supervised",
    "ral_system.in_process",
    "ral_system.report.write",
    "ral_system.launch.train",
    "ral_system.launch.evaluate",
    "ral_system.launch.data",
    "ral_system.launch.synthesize",
)


def serve(address: Path) -> NoReturn:
    """Fork for every request at the Unix socket `address`; answer with the pid, and at the end with the exit code."""
    from ral_system.heavy_imports import heavy_imports
    from ral_system.observability.quiet import silence_third_party
    from ral_system.subprocesses import die_with
    from tests.configuration_checks import omit_values

    die_with(os.getppid())
    silence_third_party()
    omit_values()
    with heavy_imports():  # which also keeps shared pages shared
        for module in PRELOADED:
            importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    unheard = address.with_suffix(".starting")
    listener.bind(str(unheard))
    listener.listen()
    unheard.rename(address)  # who finds the address can connect
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    callers: dict[int, socket.socket] = {}
    while True:
        for _ in selector.select(0.01):
            caller, _ = listener.accept()
            request, output = _receive(caller)
            pid = os.fork()
            if pid == 0:
                listener.close()
                _run(request, output)
            for descriptor in output:
                os.close(descriptor)
            caller.sendall(f"{pid}\n".encode())
            callers[pid] = caller
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with callers.pop(ended[0]) as caller:
                caller.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def _receive(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    text, ancillary, *_ = caller.recvmsg(1 << 20, socket.CMSG_SPACE(2 * array.array("i").itemsize))
    descriptors = array.array("i")
    for *_, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    while not text.endswith(b"\n"):
        text += caller.recv(1 << 20)
    return json.loads(text), list(descriptors)


def _run(request: dict[str, Any], output: list[int]) -> NoReturn:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output[0], 1)
    os.dup2(output[1], 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["program"], *request["arguments"]]
    code = 1
    try:
        sys.path[:0] = folders = [*filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
        for folder in folders:
            if (start := Path(folder) / "sitecustomize.py").is_file():  # as an interpreter would at its start
                runpy.run_path(str(start))
        if request["program"].endswith(".py"):
            runpy.run_path(request["program"], run_name="__main__")
        else:
            (command,) = entry_points(group="console_scripts", name=Path(request["program"]).name)
            command.load()()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _exit(code)


def _exit(code: int) -> NoReturn:
    import atexit

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
