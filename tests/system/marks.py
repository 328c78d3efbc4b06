"""Marks in the environment, by which a test finds every process that it started, directly or not."""

import uuid


def new_mark() -> str:
    """Return `NAME=value`, as `marked` and `end_of` look for it."""
    return f"RAL_TEST={uuid.uuid4().hex}"


def marking(mark: str) -> dict[str, str]:
    """Return what a mark adds to an environment."""
    return dict([mark.split("=")])
