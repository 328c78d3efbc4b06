"""Registries of everything chosen by name: built-in implementations and those that installed packages add."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ral_system.errors import ConfigError


class Registry:
    """The implementations of one seam, by name.

    `group` is the entry point group, for example `ral_system.families`; `what` names one implementation in messages;
    `built_in` maps names to `module:attribute`. A package adds its own under `[project.entry-points."<group>"]` in its
    pyproject.toml, with a line `name = "module:attribute"`; built-in names cannot be replaced, and a name that two
    packages register cannot be chosen. Nothing is imported before it is asked for. `instances_of` names a class,
    `module:attribute`, that every implementation must be of.
    """

    def __init__(self, group: str, what: str, built_in: Mapping[str, str], *, instances_of: str = "") -> None:
        self.group, self.what, self._built_in, self._instances_of = group, what, built_in, instances_of

    @cached_property
    def _added(self) -> dict[str, dict[str, str]]:
        """Targets by names and by the packages that register them; read only if a name is not built in."""
        found: dict[str, dict[str, str]] = {}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, {})[entry.dist.name if entry.dist else entry.value] = entry.value
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All names: those of this package in their own order, then the others, sorted."""
        return (*self._built_in, *sorted(self._added.keys() - self._built_in.keys()))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._built_in or name in self._added)

    def is_built_in(self, name: str) -> bool:
        """Return whether the name is one of this package's own."""
        return name in self._built_in

    def unknown(self, name: str) -> str:
        """Message for an unknown name: the closest match and the full list."""
        if not self.names:
            return f"no such {self.what}; install a package that adds one under {self.group}"
        near = difflib.get_close_matches(name.lower(), self.names, 1)
        meant = f"did you mean {near[0]}? There are" if near else "choose one of"
        return f"no such {self.what}; {meant} {', '.join(self.names)}"

    def problem(self, name: str) -> str:
        """Say why a name cannot be chosen; empty if it can."""
        if name not in self:
            return self.unknown(name)
        packages = [] if name in self._built_in else sorted(self._added[name])
        if len(packages) < 2:
            return ""
        return (
            f"{' and '.join(packages)} each register a {self.what} of this name; uninstall all of these packages but "
            "one"
        )

    def get(self, name: str) -> Any:
        """The implementation called `name`. Raises ConfigError for a name that is not known, or says why it fails."""
        if problem := self.problem(name):
            raise ConfigError(f"{name!r}: {problem}")
        target = self._built_in.get(name) or next(iter(self._added[name].values()))
        try:
            found = _imported(target)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.what} {name!r} is registered as {target}, which cannot be imported: {error}"
            ) from error
        if self._instances_of and not isinstance(found, expected := _imported(self._instances_of)):
            raise ConfigError(
                f"{self.what} {name!r} is registered as {target}, which is a {type(found).__name__}; register a "
                f"{expected.__name__}"
            )
        return found


def _imported(target: str) -> Any:
    module, _, attribute = target.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


FAMILIES = Registry(
    "ral_system.families",
    "model family",
    {
        "qwen_vl": "ral_system.families.qwen_vl.family:QwenVl",
        "qwen3_vl": "ral_system.families.qwen3_vl:Qwen3Vl",
        "qwen3_5": "ral_system.families.qwen3_5:Qwen35",
        "glm4v": "ral_system.families.glm4v:Glm4v",
        "internvl": "ral_system.families.internvl:InternVl",
        "llava_onevision": "ral_system.families.llava_onevision:LlavaOneVision",
        "gemma3": "ral_system.families.gemma3:Gemma3",
        "smolvlm": "ral_system.families.smolvlm:SmolVlm",
    },
)
"""Subclasses of `families.family.Family`, chosen by the `model_type` of a model's config.json."""

WEIGHT_TRANSFERS = Registry(
    "ral_system.weight_transfers",
    "weight transfer",
    {
        "broadcast": "ral_system.weights.transfer.broadcast:Broadcast",
        "shared_memory": "ral_system.weights.transfer.shared_memory:SharedMemory",
        "object_store": "ral_system.weights.transfer.object_store:ObjectStore",
        "files": "ral_system.weights.transfer.files:Files",
    },
)
"""`rollout.weight_transfer`: `weights.transfer.transfer.Setting` → `weights.transfer.transfer.Transfer`."""

DIVERGENCES = Registry(
    "ral_system.divergences",
    "divergence",
    {
        "jsd": "ral_system.algorithms.divergences:JSD",
        "forward_kl": "ral_system.algorithms.divergences:FORWARD_KL",
        "reverse_kl": "ral_system.algorithms.divergences:REVERSE_KL",
        "tv": "ral_system.algorithms.divergences:TV",
        "hellinger": "ral_system.algorithms.divergences:HELLINGER",
    },
    instances_of="ral_system.algorithms.divergences:Divergence",
)
"""`algorithm.attention.divergence` and `algorithm.distillation.attention.divergence`: values of
`algorithms.divergences.Divergence`."""

POLICY_LOSSES = Registry(
    "ral_system.policy_losses",
    "policy loss",
    {
        "clip": "ral_system.algorithms.policy_losses.clip:CLIP",
        "dppo": "ral_system.algorithms.policy_losses.dppo:DPPO",
        "gspo": "ral_system.algorithms.policy_losses.gspo:GSPO",
        "cispo": "ral_system.algorithms.policy_losses.cispo:CISPO",
        "sapo": "ral_system.algorithms.policy_losses.sapo:SAPO",
        "reinforce": "ral_system.algorithms.policy_losses.reinforce:REINFORCE",
    },
    instances_of="ral_system.algorithms.policy_losses.inputs:PolicyLoss",
)
"""`algorithm.policy_loss.name`: values of `algorithms.policy_losses.inputs.PolicyLoss`."""

VERIFIERS = Registry(
    "ral_system.verifiers",
    "verifier",
    {
        name: f"ral_system.rewards.verifiers.{name}:score"
        for name in (
            *("exact", "multiple_choice", "numeric", "mathematics", "ocr", "free_form", "regression", "box"),
            *("interval", "function"),
        )
    },
)
"""`reward.verifier` and `reward.kinds`: (given answer, reference answer, `config.reward.JudgeConfig`) → [0, 1]."""

REWARD_SIGNALS = Registry("ral_system.reward_signals", "reward signal", {})
"""`reward.signals`, beside correctness and format: (`rewards.response.Response`, `JudgeConfig`) → [0, 1]."""

BENCHMARKS = Registry(
    "ral_system.benchmarks",
    "benchmark",
    {
        name: f"ral_system.benchmarks.{name}"
        for name in (
            *("vstar", "mme", "chartqa", "mmmu_pro", "muirbench", "vizwiz", "blink", "cvbench", "longvideobench"),
            *("nextqa", "video_mme", "video_mmmu", "lvbench", "mvbench", "tempcompass"),
        )
    },
)
"""`evaluation.benchmark.name`: modules, or other objects, with what `benchmarks.item.Benchmark` asks for."""
