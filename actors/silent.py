"""Where actors that do not answer hang, asked on their nodes before anybody ends their processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError

from ral_system.actors.nodes import task_on
from ral_system.stacks import request_stacks

_ASK_S = 30.0
"""Time for all other nodes to start a process that asks there, and to answer."""


def where_they_hang(places: Sequence[tuple[str, Path]]) -> list[str]:
    """Make actors write their stacks to their logs, given the node and log of each; say what each is doing.

    Those of this node are asked by this process, the others by a task on each node.
    """
    here, deadline = ray.get_runtime_context().get_node_id(), time.monotonic() + _ASK_S
    logs: dict[str, list[Path]] = {}
    for node, log in places:
        logs.setdefault(node, []).append(log)
    asked = {node: task_on(node, request_stacks).remote(logs[node]) for node in logs if node != here}
    said = dict(zip(logs[here], request_stacks(logs[here]), strict=True)) if here in logs else {}
    for node, ref in asked.items():
        try:
            said |= zip(logs[node], ray.get(ref, timeout=max(0.0, deadline - time.monotonic())), strict=True)
        except RayError as error:
            unknown = f"its node could not be asked what it is doing ({type(error).__name__})"
            said |= {log: f"{unknown}; its log is {log}" for log in logs[node]}
    return [said[log] for _, log in places]
