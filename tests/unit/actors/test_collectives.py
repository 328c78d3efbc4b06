"""How a rank that has waited too long for the others is recognised: by gloo's error, and by NCCL's log."""

from pathlib import Path

import pytest

from ral_system.actors.collectives import ended_by_nccl, late, waited_too_long
from ral_system.actors.learner import LearnerActor
from ral_system.actors.process import watched
from ral_system.errors import CollectiveError

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation "
    "to complete"
)
WATCHDOG = """[rank0]:[E1130 20:32:23.95 ProcessGroupNCCL.cpp:683] [Rank 0] Watchdog caught collective operation \
timeout: WorkNCCL(SeqNum=2635, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=300000) ran for 300024 \
milliseconds before timing out.
Fatal Python error: Aborted
"""
"""torch 2.13, ProcessGroupNCCL.cpp."""


def test_gloo_says_that_a_wait_was_too_long() -> None:
    assert waited_too_long(RuntimeError(GLOO))
    assert not waited_too_long(RuntimeError("Connection closed by peer [127.0.0.1]:4711"))
    assert not waited_too_long(ValueError(GLOO))


def test_nccl_says_it_in_the_log_of_the_process_that_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "learner_0.log"
    assert ended_by_nccl(log) is None
    log.write_text(f"--- learner 0: pid 1 on a\n{WATCHDOG}")
    assert ended_by_nccl(log) == 300.0
    log.write_text(f"--- learner 0: pid 1 on a\n{WATCHDOG}--- learner 0: pid 2 on a\nKilled\n")  # a later session's
    assert ended_by_nccl(log) is None
    assert late("learner 0", 300.0) == (
        "learner 0 waited for other learner ranks longer than learner.collective_timeout_s=300"
    )


class Rank(LearnerActor):
    """A learner that has been built."""

    _collective_timeout_s = 3.0

    @watched
    def update(self, error: Exception) -> None:  # type: ignore[override]
        """Fail."""
        raise error


def test_a_rank_that_waited_names_itself_and_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ral_system.actors.process._redirect_output", "ral_system.actors.process.faulthandler.enable"):
        monkeypatch.setattr(name, lambda *_, **__: None)
    rank = Rank("learner 0", tmp_path / "learner.log")
    with pytest.raises(CollectiveError, match=r"^learner 0 waited .* longer than learner.collective_timeout_s=3$"):
        rank.update(RuntimeError(GLOO))
    assert "unbound_buffer" in capsys.readouterr().err  # the log has gloo's own words
    with pytest.raises(RuntimeError, match="closed by peer"):
        rank.update(RuntimeError("Connection closed by peer"))
    monkeypatch.setattr(Rank, "_collective_timeout_s", None)  # at the start, another limit ends a wait
    with pytest.raises(RuntimeError, match="Timed out"):
        rank.update(RuntimeError(GLOO))
