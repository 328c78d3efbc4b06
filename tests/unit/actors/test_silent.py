"""Report of actors that do not answer, on this node and on others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, NodeDiedError

from ral_system.actors import silent


class Ray:
    """This node, node 7, node 8 that has died, and node 9 that does not answer."""

    def __init__(self) -> None:
        self.given_s: list[float] = []

    def get_runtime_context(self) -> Any:
        return self

    def get_node_id(self) -> str:
        return "here"

    def get(self, ref: tuple[str, list[str]], timeout: float) -> list[str]:
        self.given_s.append(timeout)
        node, said = ref
        if node in "89":
            raise {"8": NodeDiedError("gone"), "9": GetTimeoutError("late")}[node]
        return said


class Task:
    def __init__(self, node: str, function: Callable[[Sequence[Path]], list[str]]) -> None:
        self._node, self._function = node, function

    def remote(self, logs: Sequence[Path]) -> tuple[str, list[str]]:
        return self._node, self._function(logs)


def test_each_node_is_asked_once_and_answers_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[Path]] = []

    def request_stacks(logs: Sequence[Path]) -> list[str]:
        asked.append(logs)
        return [f"it is in {log}" for log in logs]

    ray = Ray()
    monkeypatch.setattr(silent, "ray", ray)
    monkeypatch.setattr(silent, "task_on", Task)
    monkeypatch.setattr(silent, "request_stacks", request_stacks)
    logs = [Path(name) for name in "abcdef"]
    unknown = "its node could not be asked what it is doing"
    assert silent.where_they_hang(list(zip(("7", "here", "9", "7", "8", "here"), logs, strict=True))) == [
        "it is in a",
        "it is in b",
        f"{unknown} (GetTimeoutError); its log is c",
        "it is in d",
        f"{unknown} (NodeDiedError); its log is e",
        "it is in f",
    ]
    assert sorted(map(len, asked)) == [1, 1, 2, 2]
    assert len(ray.given_s) == 3 and all(0 < given <= 30 for given in ray.given_s)
    assert silent.where_they_hang([]) == []
