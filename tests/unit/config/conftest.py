from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import conf


@pytest.fixture(scope="session")
def compose_container() -> Callable[[Sequence[str]], dict[str, Any]]:
    """Overrides → the plain container that entry points hand to `parse_config`."""

    def composed(overrides: Sequence[str] = ()) -> dict[str, Any]:
        with initialize_config_dir(str(Path(conf.__file__).parent), version_base="1.3"):
            container = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
        assert isinstance(container, dict)
        return container

    return composed
