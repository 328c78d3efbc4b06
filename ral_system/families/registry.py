"""Known families."""

from __future__ import annotations

from ral_system.errors import ConfigError, SetupError
from ral_system.families.family import Family
from ral_system.registry import Registry

FAMILIES: Registry[type[Family]] = Registry(
    "ral_system.families",
    "model family",
    {
        "qwen_vl": "ral_system.families.qwen_vl.family:QwenVl",
        "qwen3_vl": "ral_system.families.qwen3_vl:Qwen3Vl",
    },
)


def family_of(model_type: str, model: object) -> type[Family]:
    """The family that `model_type` belongs to. Raises SetupError for one that is not known."""
    known: dict[str, type[Family]] = {}
    broken = []
    for name in FAMILIES.names:
        try:
            family = FAMILIES.get(name)
        except ConfigError as error:  # of a package that has nothing to do with this model, perhaps
            broken.append(str(error))
        else:
            known |= dict.fromkeys(family.model_types, family)
    if model_type not in known:
        reasons = "; ".join([f"known are {', '.join(sorted(known))}", *broken])
        raise SetupError(f"model {model}: model_type={model_type} belongs to no known family; {reasons}")
    return known[model_type]


def known_types() -> list[str]:
    """Every `model_type` that some family serves."""
    return sorted(model_type for family in FAMILIES.all().values() for model_type in family.model_types)
