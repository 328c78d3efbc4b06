"""Commands that fail, for the tests of what runs commands."""

import sys


def exit_1() -> None:
    sys.exit(1)


def exit_2() -> None:
    sys.exit(2)
