"""Keeps transformers from describing a model's configuration in errors that nobody reads.

It checks a field against each type of a union until one fits, and the error of one that does not fit has the value in
it: for a part of a model's configuration, all values that differ from the defaults. That is half of the time that a
tiny model takes to load, and a twentieth of the unit tests'.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import dataclasses


def omit_values() -> None:
    """Let the error of a field with a wrong type name the field and both types, without the value."""
    dataclasses._validate_simple_type = _check  # type: ignore[attr-defined]


def _check(name: str, value: Any, expected_type: type) -> None:
    if not isinstance(value, expected_type) or (expected_type is int and isinstance(value, bool)):
        raise TypeError(f"Field {name!r} expected {expected_type.__name__}, got {type(value).__name__}")
