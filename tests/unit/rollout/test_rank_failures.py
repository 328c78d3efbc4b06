"""What a rank of an engine raised, in the engine's process."""

import logging
import multiprocessing
import time

import pytest

from ral_system.rollout.rank_failures import leave_failures, rank_failures

LOGGER = logging.getLogger("vllm.v1.executor.multiproc_executor")


def fail(message: str, after_s: float) -> None:
    """Log an exception as vLLM does in a rank, and another as it shuts down."""
    leave_failures()
    time.sleep(after_s)
    for each in (message, "the other side has closed"):
        try:
            raise ValueError(each)
        except ValueError:
            LOGGER.exception("WorkerProc failed to start.")


def start_ranks(*messages: str) -> None:
    """Start ranks that fail one after the other, and raise what vLLM does."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=fail, args=(each, 0.1 * at)) for at, each in enumerate(messages)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    raise Exception("WorkerProc initialization failed due to an exception in a background process.")


def test_the_first_failure_of_a_rank_takes_the_place_of_vllms() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: memory is short$") as caught, rank_failures():
        start_ranks("memory is short", "no peer")
    assert str(caught.value.__cause__).startswith("WorkerProc initialization failed")


def test_without_a_failed_rank_an_error_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError), rank_failures():
        raise ZeroDivisionError


def test_an_engine_that_has_started_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(LOGGER.handlers)
    try:
        with rank_failures():
            leave_failures()
        assert len(LOGGER.handlers) == len(before) + 1
        LOGGER.error("later", exc_info=ValueError("a bug"))  # its folder is gone
    finally:
        LOGGER.handlers[:] = before
    leave_failures()  # outside the block, it does nothing
    assert LOGGER.handlers == before
