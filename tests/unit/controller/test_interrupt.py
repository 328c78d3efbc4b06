import gc
import os
import signal
from collections.abc import Iterator

import pytest

from ral_system.controller import interrupt


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(interrupt, "_requested", False)
    interrupt.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts(number: signal.Signals) -> None:
    interrupt.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_raised_at_the_next_check() -> None:
    class Signals:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    dropped = Signals()
    del dropped  # prints that the exception was ignored
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
