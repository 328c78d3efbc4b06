"""Which family a model belongs to."""

from __future__ import annotations

from ral_system.errors import ConfigError, SetupError
from ral_system.families.family import Family
from ral_system.registry import FAMILIES


def family_of(model_type: str, model: str) -> type[Family]:
    """The family that `model_type` belongs to. Raises SetupError for one that is not known, which begins with `model`,
    such as `start_model=/model`.
    """
    known: dict[str, type[Family]] = {}
    broken = []
    for name in FAMILIES.names:
        try:
            family: type[Family] = FAMILIES.get(name)
        except ConfigError as error:  # of a package that has nothing to do with this model, perhaps
            broken.append(str(error))
        else:
            known |= dict.fromkeys(family.model_types, family)
    if model_type not in known:
        remedy = f"choose one of {', '.join(sorted(known))}, or add a family (docs/extending.md)"
        raise SetupError("; ".join([f"{model}: model_type={model_type} belongs to no known family", remedy, *broken]))
    return known[model_type]


def known_types() -> list[str]:
    """Every `model_type` that some family serves."""
    return sorted(model_type for name in FAMILIES.names for model_type in FAMILIES.get(name).model_types)
