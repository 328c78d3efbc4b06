"""A verifier that scores 0.5 for an answer that is half right, and a signal that rewards few words."""

from ral_system.config.reward import JudgeConfig
from ral_system.rewards.response import Response


def half_right(given: str, reference: str) -> float:
    """Compare two cells such as `b3`: 1 if they are the same, 0.5 if column or row is, else 0.

    Any other answer is right or wrong as a whole.
    """
    if given == reference:
        return 1.0
    if len(given) == len(reference) == 2 and reference[1].isdigit():
        return 0.5 if given[0] == reference[0] or given[1] == reference[1] else 0.0
    return 0.0


def nearly(given: str, reference: str, settings: JudgeConfig) -> float:
    """Judge an answer by `half_right`; a verifier also gets the settings of the `reward` group."""
    return half_right(given, reference)


def brevity(response: Response, settings: JudgeConfig) -> float:
    """Return 1 / words of a whole response, 1 for an empty one."""
    return 1 / max(1, len(response.text.split()))
