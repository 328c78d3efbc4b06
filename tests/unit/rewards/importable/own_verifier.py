"""A verifier as a user would write one."""


def first_word(given: str, reference: str) -> float:
    return float(given.split()[:1] == reference.split()[:1])


def five(given: str, reference: str) -> float:
    return 5.0


def nothing_at_all(given: str, reference: str) -> None:
    pass


def broken(given: str, reference: str) -> float:
    return {"blue": 1.0}[reference]


WORDS = 3
