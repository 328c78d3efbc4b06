"""What is told of processes that a stage leaves behind, on this node and on others."""

from collections.abc import Sequence
from typing import Any

import pytest
from ray.exceptions import NodeDiedError

from ral_system.actors import ending
from ral_system.endings import Leftover

LEFT = Leftover(4711, "rollout 0", "VLLM::Worker_TP1", alive=False)


class Ray:
    """Three nodes: this one, one that answers, and others that do not."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def wait(self, refs: Sequence[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert (num_returns, timeout) == (len(refs), 60.0)
        return [ref for ref in refs if ref in self._answers], [ref for ref in refs if ref not in self._answers]

    def get(self, ref: str) -> Any:
        if isinstance(answer := self._answers[ref], Exception):
            raise answer
        return answer


class Task:
    def __init__(self, node: str, function: object) -> None:
        self._node = node

    def remote(self, stage: str, grace_s: float, kill_s: float) -> str:
        assert stage == "5f3a"
        return self._node


def told(monkeypatch: pytest.MonkeyPatch, nodes: set[str], here: list[Leftover], answers: dict[str, Any]) -> list[str]:
    monkeypatch.setattr(ending, "ray", Ray(answers))
    monkeypatch.setattr(ending, "task_on", Task)
    monkeypatch.setattr(ending, "end_marked", lambda stage, grace_s, kill_s: here)
    monkeypatch.setattr(ending, "address", lambda node: f"10.0.0.{node}")
    lines: list[str] = []
    ending.end_processes("5f3a", nodes, lines.append)
    return lines


def test_leftovers_are_named_with_owner_pid_and_node(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = Leftover(12, "learner 1", "ray::LearnerAct", alive=True)
    assert told(monkeypatch, {"here", "7"}, [LEFT], {"7": [alive]}) == [
        "warning: rollout 0 left process 4711 (VLLM::Worker_TP1) on node 10.0.0.here behind; it was killed",
        "warning: learner 1 left process 12 (ray::LearnerAct) on node 10.0.0.7 behind; it is alive after SIGKILL and "
        "keeps its memory, also on GPUs",
    ]
    assert told(monkeypatch, {"here"}, [], {}) == []


def test_only_nodes_of_the_stage_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, {"7"}, [LEFT], {"7": []}) == []


def test_a_node_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, {"7", "8"}, [], {"7": NodeDiedError("gone")})
    assert lines == [
        "warning: processes may be left on node 10.0.0.7, which could not be asked (NodeDiedError)",
        "warning: processes may be left on node 10.0.0.8, which could not be asked (no answer within 60 s)",
    ]
