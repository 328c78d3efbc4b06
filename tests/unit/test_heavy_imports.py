import gc
import weakref
from collections.abc import Iterator

import pytest

from ral_system.heavy_imports import heavy_imports


class Made:
    pass


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_no_garbage_is_looked_for_during_imports_and_what_they_made_is_passed_over_later() -> None:
    with heavy_imports():
        assert not gc.isenabled()
        made = Made()
    assert gc.isenabled()
    assert not any(each is made for each in gc.get_objects())  # collections pass over what is frozen
    later = Made()
    later.itself, gone = later, weakref.ref(later)
    del later
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_an_import_that_fails_leaves_the_collector_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), heavy_imports():
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
