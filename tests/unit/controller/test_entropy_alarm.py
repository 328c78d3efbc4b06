from collections.abc import Callable
from io import StringIO

from rich.console import Console

from ral_system.config.commands import TrainConfig
from ral_system.controller.stages import entropy_alarm
from ral_system.observability.progress import StageProgress


def test_it_says_what_collapsed_and_what_to_do(make_config: Callable[..., TrainConfig]) -> None:
    half = make_config("logging.attention_entropy_alarm=0.5").logging
    assert entropy_alarm(1.0, 2.0, half) is None
    message = entropy_alarm(0.9, 2.0, half)
    assert message is not None
    assert (
        "attention entropy is 0.9 nats, below logging.attention_entropy_alarm=0.5 times the first step's 2" in message
    )
    assert "lower algorithm.attention.weight" in message
    never = make_config("logging.attention_entropy_alarm=0").logging
    assert entropy_alarm(0.0, 2.0, never) is None


def test_an_alarm_that_goes_on_is_said_once() -> None:
    text = StringIO()
    with StageProgress("rl", total=3, console=Console(file=text)) as progress:
        progress.warn("attention entropy is 0.9 nats")
        progress.warn("attention entropy is 0.8 nats")
    assert text.getvalue().count("warning:") == 1
