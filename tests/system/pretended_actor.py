"""Any actor of a run, which says where it is. In a module of its own, so its process imports little."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray

from ral_system.actors.process import ActorProcess


class Place(NamedTuple):
    """Where a process is."""

    node: str
    gpus: tuple[int, ...]
    """GPUs of the node that it sees."""


class PretendedActor(ActorProcess):
    def place(self) -> Place:
        seen = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        return Place(ray.get_runtime_context().get_node_id(), tuple(map(int, seen)))

    def build_teacher(self, *given: Any, gpus: int, **named: Any) -> int:
        """Return over how many GPUs it shall lie."""
        return gpus

    @ray.method(num_returns="streaming")
    def generate(self, pieces: Sequence[Any], sampling: Any) -> Iterator[list[tuple[Place, str, int]]]:
        """Report where each completion is made, its prompt, and its index in the group."""
        for piece in pieces:
            indices = range(piece.first, piece.first + piece.completions)
            yield [(self.place(), piece.prompt.id, index) for index in indices]
