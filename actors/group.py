"""Waiting for actors, always with a bound. A dead or silent one becomes an ActorError that says who and shows its log.

An actor's errors of our own hierarchy come out unchanged; this module removes Ray's wrapping.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from ral_system.actors.collectives import ended_by_nccl, late
from ral_system.actors.silent import where_they_hang
from ral_system.errors import ActorError, CollectiveError, RalError

_TAIL_LINES = 4
_TAIL_BYTES = 8192
_PEER_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Member:
    """One actor of a run. `log` is the file that it writes, `node` the id of the node that it is on."""

    handle: Any = field(repr=False)
    role: str
    rank: int
    log: Path
    node: str

    @property
    def name(self) -> str:
        """Role and rank, for example `rollout 0`."""
        return f"{self.role} {self.rank}"


@dataclass(frozen=True, slots=True)
class Call:
    """An answer that an actor owes: a Ray object reference, or a generator of them."""

    member: Member
    ref: Any


def wait_all(
    calls: Sequence[Call],
    timeout_s: float,
    doing: str,
    on_answer: Callable[[Member], None] = lambda member: None,
    beside: Sequence[Call] = (),
) -> list[Any]:
    """Return the answers, in order; `on_answer` is called as each comes. The first failure ends the wait.

    A failure of a call `beside` these also counts, but nobody waits for its answer. `doing` completes "rollout 0 died
    while …". Raises ActorError, or what the actor raised.
    """
    deadline = time.monotonic() + timeout_s
    pending = {call.ref: call for call in (*calls, *beside)}
    answers: dict[Any, Any] = {}
    while due := [call.member for call in calls if call.ref not in answers]:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise _silent(due, timeout_s, doing)
        call = pending.pop(ready[0])
        answers[call.ref] = _get(call, call.ref, timeout_s, doing, pending.values())
        on_answer(call.member)
    return [answers[call.ref] for call in calls]


def stream(calls: Sequence[Call], timeout_s: float, doing: str) -> Iterator[Any]:
    """Yield items of several actors' generators as they come. Raise if none of them yields for `timeout_s`."""
    pending = {call.ref: call for call in calls}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout_s)
        if not ready:
            raise _silent([call.member for call in pending.values()], timeout_s, doing)
        call = pending[ready[0]]
        try:
            item = next(call.ref)
        except StopIteration:
            del pending[call.ref]
            continue
        except RayError as error:
            raise _explain(error, call, doing, ()) from None
        yield _get(call, item, timeout_s, doing, ())


def log_tail(log: Path) -> str:
    """Return the last lines of an actor's log, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError as error:
        return f"{log} cannot be read ({error.strerror})"
    return f"last lines of {log}: {' | '.join([line for line in lines if line][-_TAIL_LINES:])}"


def _get(call: Call, ref: Any, timeout_s: float, doing: str, others: Any) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise _silent([call.member], timeout_s, doing) from None
    except RayError as error:
        explained = _explain(error, call, doing, others)
        if explained is error:
            raise
        raise explained from None


def _explain(error: RayError, call: Call, doing: str, others: Any) -> Exception:
    """Return our own error if the actor raised one, an ActorError if an actor died, else the error, which is a bug."""
    cause: Any = error
    while isinstance(cause, RayTaskError) and cause.cause is not cause:
        cause = cause.cause
    if isinstance(cause, CollectiveError):
        return _dead_peer(others, doing) or _absent(str(cause), others, doing, grace_s=0)
    if isinstance(cause, RalError):
        return cause
    if isinstance(error, RayTaskError) and not isinstance(cause, RayError):
        return _dead_peer(others, doing) or error  # a rank that lost its peer fails with a misleading error
    return _dead(call.member, error, others, doing)


def _absent(waited: str, others: Any, doing: str, *, grace_s: float) -> CollectiveError:
    """Name the ranks that neither take part in a collective nor fail when the others do, or soon after."""
    calls = {call.ref: call.member for call in others}
    _, silent = ray.wait(list(calls), num_returns=len(calls), timeout=grace_s) if calls else ([], [])
    if not silent:
        return CollectiveError(f"{waited} while {doing}; no rank is silent: the network between them may have failed")
    members = [calls[ref] for ref in silent]
    return CollectiveError(f"{waited} while {doing}; {_names(members)} did not come; {_position(members)}")


def _dead_peer(others: Any, doing: str) -> ActorError | None:
    calls = {call.ref: call for call in others}
    if not calls:
        return None
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_PEER_GRACE_S)
    for ref in ready:
        try:
            ray.get(ref, timeout=_PEER_GRACE_S)
        except RayActorError as error:
            return _dead(calls[ref].member, error, others, doing)
        except RayError:
            continue
    return None


def _dead(member: Member, error: RayError, others: Any, doing: str) -> ActorError:
    if member.role == "learner" and (limit_s := ended_by_nccl(member.log)) is not None:
        return _absent(late(member.name, limit_s), others, doing, grace_s=_PEER_GRACE_S)
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit detail: (.{0,160}?)(?:\. |$)", text)
    reason = detail.group(1) if detail else text[:160]
    return ActorError(f"{member.name} died while {doing} ({reason}); {log_tail(member.log)}")


def _silent(members: Sequence[Member], timeout_s: float, doing: str) -> ActorError:
    waited = f"{_names(members)} did not answer within {timeout_s:.0f} s while {doing}"
    return ActorError(f"{waited}; {_position(members)}")


def _position(members: Sequence[Member]) -> str:
    """Make the members write their stacks to their logs, and say what the first of them is doing."""
    first, *others = where_they_hang([(member.node, member.log) for member in members])
    return f"{members[0].name}: {first}" if others else first


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.name for member in members)
