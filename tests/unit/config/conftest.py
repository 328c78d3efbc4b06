from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests import composed


@pytest.fixture(scope="session")
def compose_container() -> Callable[[Sequence[str]], dict[str, Any]]:
    """Overrides → the plain container that entry points hand to `parse_config`."""
    return lambda overrides=(): composed.compose_container(*overrides)
