from pathlib import Path

import pytest

from tests.unit.planning.models import write_7b


@pytest.fixture(scope="session")
def one_layer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_7b(tmp_path_factory.mktemp("7b") / "model", tiny_model, layers=1, vocabulary=2048, depth=2)
