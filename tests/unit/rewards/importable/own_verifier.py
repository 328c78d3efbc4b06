"""A verifier as a user would write one."""


def first_word(given: str, reference: str) -> float:
    return float(given.split()[:1] == reference.split()[:1])
