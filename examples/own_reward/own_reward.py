"""A reward that gives half of its worth to an answer that is half right."""


def nearly(answer: str, reference: str) -> float:
    """Compare two cells such as `b3`: 1 if they are the same, 0.5 if column or row is, else 0.

    Any other answer is right or wrong as a whole.
    """
    if answer == reference:
        return 1.0
    if len(answer) == len(reference) == 2 and reference[1].isdigit():
        return 0.5 if answer[0] == reference[0] or answer[1] == reference[1] else 0.0
    return 0.0
