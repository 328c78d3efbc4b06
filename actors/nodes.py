"""Check every node before a run starts: it must see the run folder, have the models, and read the data's media."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ral_system.actors.cluster import LOOPBACK
from ral_system.errors import SetupError
from ral_system.models.staging import ModelCopy

_TOKEN_WAIT_S = 3.0
"""Time to wait for the token's file: a network file system may show a new file late."""
_REPEAT_S = 30.0
_NOT_IMPORTED = "failed to import on the worker"
"""Part of Ray's error message when a node cannot import the module of a function."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Result of a node's check: the path of each model, or the problem.

    Example: `Sight(folders=(Path("/hub/models--org--name/snapshots/cc59"),), problem=None)`
    """

    folders: tuple[Path, ...]
    problem: str | None


def nodes_of(group: PlacementGroup) -> list[str]:
    """Return the node of each bundle, in the bundles' order."""
    by_bundle = placement_group_table(group)["bundles_to_node_id"]
    return [by_bundle[index] for index in sorted(by_bundle)]


def task_on(node: str, function: Callable[..., Any]) -> Any:
    """Return the function as a task for this node, which needs no free CPU there and is not tried again."""
    return ray.remote(function).options(
        num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )


def meeting_host(nodes: Sequence[str]) -> str:
    """Return the first node's address for processes on all of these nodes: loopback if they are one node."""
    return LOOPBACK if len(set(nodes)) == 1 else address(nodes[0])


def scattered(nodes: Sequence[str], together: int) -> str | None:
    """Warn if a group of `together` learner ranks, which share micro-batches, spans nodes; None if none does."""
    groups = [nodes[first : first + together] for first in range(0, len(nodes), together)]
    apart = [index for index, group in enumerate(groups) if len(set(group)) > 1]
    if not apart:
        return None
    ranks = f"{apart[0] * together} to {(apart[0] + 1) * together - 1}{' and others' if len(apart) > 1 else ''}"
    return (
        f"warning: learner.sequence_parallel={together}: learner ranks {ranks} are on several nodes, and exchange "
        f"every layer's tokens over the network; use nodes that hold a multiple of {together} ranks"
    )


def stage_models(
    nodes: Sequence[str],
    models: Sequence[Sequence[Path]],
    media: Sequence[Path],
    run_folder: Path,
    timeout_s: float,
    tell: Callable[[str], None],
) -> list[Mapping[Path, Path]]:
    """Return, per bundle, a map from the driver's model path to the path on that bundle's node.

    `nodes` and `models` are those of each bundle. Every node but the driver's reads a token in the run folder and finds
    its models, all at once. One that has models must also read `media`, some of the original pictures and videos.
    Raises SetupError that names the node.
    """
    here = ray.get_runtime_context().get_node_id()
    by_node: dict[str, dict[Path, Path]] = {node: {} for node in nodes}
    for node, needed in zip(nodes, models, strict=True):
        by_node[node] |= {folder: folder for folder in needed}
    apart = {node: found for node, found in by_node.items() if node != here}
    copies = {folder: ModelCopy.of(folder) for folder in {folder for found in apart.values() for folder in found}}
    with _token(run_folder) as token:
        looks = {
            task_on(node, look).remote(
                run_folder, token, tuple(copies[folder] for folder in found), media if found else ()
            ): node
            for node, found in apart.items()
        }
        for node, sight in _answers(looks, timeout_s, tell):
            if sight.problem is not None:
                raise SetupError(f"node {address(node)} {sight.problem}")
            by_node[node] = dict(zip(by_node[node], sight.folders, strict=True))
    return [by_node[node] for node in nodes]


def look(run_folder: Path, token: str, copies: Sequence[ModelCopy], media: Sequence[Path]) -> Sight:
    """Check the node that this runs on."""
    if not _sees(run_folder, token):
        remedy = "set runs_dir to a path on a file system that every node mounts"
        return Sight((), f"does not see the run folder {run_folder} of the driver's node; {remedy}")
    if absent := [path for path in media if not os.access(path, os.R_OK)]:
        return Sight(
            (),
            f"cannot read {absent[0]}, a picture or video of data.sources ({len(absent)} of {len(media)} that were "
            "tried are missing); mount the folder under the same path on every node",
        )
    try:
        return Sight(tuple(copy.find() for copy in copies), None)
    except SetupError as error:
        return Sight((), str(error))


def _answers(looks: Mapping[Any, str], timeout_s: float, tell: Callable[[str], None]) -> Iterator[tuple[str, Sight]]:
    deadline, pending = time.monotonic() + timeout_s, dict(looks)
    while pending:
        left = deadline - time.monotonic()
        silent = _named(list(pending.values()))
        if left <= 0:
            raise SetupError(
                f"{silent} did not find the run folder and the models within {timeout_s:.0f} s; raise "
                "cluster.start_timeout_s, or put HF_HOME on a volume that every node mounts"
            )
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=min(_REPEAT_S, left))
        if not ready:
            tell(f"waiting up to {timeout_s:.0f} s for the models on {silent}")
        for ref in ready:
            node = pending.pop(ref)
            try:
                yield node, ray.get(ref)
            except RayError as error:
                raise _failure(address(node), error) from error


def _failure(address: str, error: RayError) -> SetupError:
    """Explain why a node's check failed: it lacks the code, the check raised an error, or its process was lost."""
    if isinstance(error, RayTaskError):
        cause: Any = error.cause
        reason = str(error).strip().splitlines()[-1][:200]
    else:
        cause = error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(cause, RaySystemError):  # what was sent cannot be unpickled, there or here
        cause = cause.client_exc
    if isinstance(cause, (ImportError, AttributeError)) or _NOT_IMPORTED in str(error):
        return SetupError(
            f"node {address} cannot run this version of ral-system ({reason}); install the driver's version, and what "
            "it depends on, there"
        )
    if isinstance(error, RayTaskError):
        return SetupError(f"node {address} failed the start-up check ({reason})")
    return SetupError(
        f"node {address} did not finish the start-up check ({reason}); `ray status` shows which nodes are alive, and "
        "Ray's logs there why the process ended"
    )


@contextmanager
def _token(run_folder: Path) -> Iterator[str]:
    """Keep a random token in a file, named after it, while nodes look for it."""
    token = secrets.token_hex(16)
    file = _token_file(run_folder, token)
    run_folder.mkdir(parents=True, exist_ok=True)
    file.write_text(token)
    try:
        yield token
    finally:
        file.unlink(missing_ok=True)


def _token_file(run_folder: Path, token: str) -> Path:
    return run_folder / f".shared_{token[:8]}"


def _sees(run_folder: Path, token: str) -> bool:
    deadline = time.monotonic() + _TOKEN_WAIT_S
    while True:
        try:
            if _token_file(run_folder, token).read_text() == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _named(nodes: Sequence[str]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(map(address, nodes))}"


def address(node: str) -> str:
    """Return a node's address, given its id; the id itself if the cluster does not know it."""
    return next((str(n["NodeManagerAddress"]) for n in ray.nodes() if n["NodeID"] == node), node)
