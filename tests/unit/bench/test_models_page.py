"""docs/models.md has every model that is served."""

from bench.models import TARGET, page, served
from ral_system.families.known import known_types


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run python -m bench.models"


def test_every_type_has_a_row() -> None:
    assert sorted(of.model_type for of in served()) == known_types()
