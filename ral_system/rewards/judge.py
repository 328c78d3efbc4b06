"""What a response's text is worth: correctness, format, and the signals that installed packages add.

Runs in processes that can be killed (`rewards.pool`).
"""

from __future__ import annotations

from ral_system.config.reward import JudgeConfig
from ral_system.registry import REWARD_SIGNALS, VERIFIERS
from ral_system.rewards.format import extract_answer, format_score
from ral_system.rewards.response import Response


def judge(response: Response, config: JudgeConfig) -> dict[str, float]:
    """The signals of one response by name, unweighted, each in [0, 1].

    A response without an answer, or with several, has a correctness of 0 whatever the verifier.
    """
    given = extract_answer(response.text)
    found = {
        "correctness": 0.0 if given is None else VERIFIERS.get(config.verifier)(given, response.reference, config),
        "format": format_score(response.text, response.format),
    }
    return found | {name: REWARD_SIGNALS.get(name)(response, config) for name in config.signal_names}


def prepare(config: JudgeConfig) -> None:
    """Import all that `judge` calls, so a mistake shows before the first response. Raises what importing raises,
    and ConfigError for a `reward.function` that is not there.
    """
    for name in {config.verifier, *config.kinds.values()}:
        VERIFIERS.get(name)
    for name in config.signal_names:
        REWARD_SIGNALS.get(name)
    if config.function is not None:
        from ral_system.rewards.verifiers import function

        function.prepare(config)
