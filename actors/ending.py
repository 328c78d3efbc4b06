"""Wait, on every node, until what a stage's actors started has ended."""

from __future__ import annotations

from collections.abc import Callable, Collection

import ray
from ray.exceptions import RayError

from ral_system.actors.nodes import address, task_on
from ral_system.endings import Leftover, end_marked

GRACE_S = 10.0
"""How long a killed actor's children may take to notice, and to tidy up."""
KILL_S = 20.0
_ASK_S = 60.0
"""Time to start a process on another node that looks there."""


def end_processes(stage: str, nodes: Collection[str], tell: Callable[[str], None]) -> None:
    """Return when no process of the stage is left on these nodes, or the time is up; tell of each that was left over.

    The stage's actors have been killed. This node is looked at by this process, the others by a task there.
    """
    here = ray.get_runtime_context().get_node_id()
    asked = {task_on(node, end_marked).remote(stage, GRACE_S, KILL_S): node for node in nodes if node != here}
    if here in nodes:
        _tell_of(end_marked(stage, GRACE_S, KILL_S), here, tell)
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_S) if asked else ([], [])
    for ref in answered:
        try:
            _tell_of(ray.get(ref), asked[ref], tell)
        except RayError as error:
            _unknown(asked[ref], type(error).__name__, tell)
    for ref in silent:
        _unknown(asked[ref], f"no answer within {_ASK_S:.0f} s", tell)


def _tell_of(left: Collection[Leftover], node: str, tell: Callable[[str], None]) -> None:
    for each in left:
        fate = "it is alive after SIGKILL and keeps its memory, also on GPUs" if each.alive else "it was killed"
        where = f"process {each.pid} ({each.command}) on node {address(node)}"
        tell(f"warning: {each.owner} left {where} behind; {fate}")


def _unknown(node: str, reason: str, tell: Callable[[str], None]) -> None:
    tell(f"warning: processes may be left on node {address(node)}, which could not be asked ({reason})")
