"""LoRA by peft (Hu et al. 2021, arXiv 2106.09685): matrices W are frozen and multiply as W + alpha / rank · B A."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ral_system.config.learner import LoraConfig
from ral_system.errors import ConfigError
from ral_system.models.policy import PolicyModel

_BASE = ".base_layer."
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"
_PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules in its files."""


class Adapters:
    """The adapters of a policy. Their construction freezes its weights and puts adapters that change nothing beside
    the targets.

    Raises ConfigError for a target that the model does not have. Construct them before an engine shards the weights.
    """

    def __init__(self, policy: PolicyModel, lora: LoraConfig) -> None:
        import peft  # takes 3 s
        from peft.tuners.lora import LoraLayer

        targets = _adapted(policy, lora)
        self._config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
        policy.requires_grad_(False)
        peft.inject_adapter_in_model(self._config, policy.model)
        self._layers: list[Any] = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
        self._scale = lora.alpha / lora.rank

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Let the policy be the model that training started from inside the block. Not for a pass with gradients."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def parts(self, held: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Map each weight of the merged model to the adapted model's weights that it is computed from, by name."""
        found: dict[str, tuple[str, ...]] = {}
        for name in held:
            module = name.removesuffix(f"{_BASE}weight")
            if not name.endswith((_A, _B)):
                found[name.replace(_BASE, ".")] = (name,) if module == name else (name, module + _A, module + _B)
        return found

    def merged(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Turn an adapted model's weights, in the model's order, into those of a plain one, each when it is read.

        A target's W, A and B must all be valid when B arrives.
        """
        waiting: dict[str, Tensor] = {}
        for name, weight in weights:
            waiting[name] = weight
            if not next(iter(waiting)).endswith(f"{_BASE}weight") or name.endswith(_B):
                for plain, parts in self.parts(waiting).items():
                    yield plain, _sum(*(waiting[part] for part in parts), scale=self._scale)
                waiting = {}
            del weight  # before ranks gather the next one

    def save(self, state: Mapping[str, Tensor], folder: Path, start: Path) -> None:
        """Write the adapters out of an adapted model's weights in peft's format, as beside the model folder `start`."""
        self._config.base_model_name_or_path = str(start)
        self._config.inference_mode = True
        self._config.save_pretrained(str(folder))
        matrices = {
            _PEFT_PREFIX + name.replace(".default.", "."): weight.detach().cpu().contiguous()
            for name, weight in state.items()
            if name.endswith((_A, _B))
        }
        save_file(matrices, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def _sum(weight: Tensor, *adapter: Tensor, scale: float) -> Tensor:
    """W + scale · B A of W, A and B, in float32 and rounded once; W itself without A and B."""
    if not adapter:
        return weight
    a, b = adapter
    return weight.to(torch.float32, copy=True).addmm_(b.float(), a.float(), alpha=scale).to(weight.dtype)


def _adapted(policy: PolicyModel, lora: LoraConfig) -> list[str]:
    """Names of the modules to adapt."""
    model, family = policy.model, policy.family
    visual = {part for module in (family.vision_encoder(model), *family.projector(model)) for part in module.modules()}
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not model.lm_head}
    text = [name for name, module in linear.items() if module not in visual]
    candidates = list(linear) if lora.vision else text
    if unknown := [target for target in lora.targets if not any(_ends(name, target) for name in candidates)]:
        where = "the model" if lora.vision else "the text model"
        raise ConfigError(f"learner.lora.targets={unknown}: {where} has no such matrices; it has {_last(candidates)}")
    found = [name for name in candidates if any(_ends(name, target) for target in lora.targets)]
    if lora.vision and not set(found) - set(text):
        raise ConfigError(
            f"learner.lora.vision=true: none of learner.lora.targets={list(lora.targets)} is in the vision encoder, "
            f"which has {_last(set(linear) - set(text))}; add one of them, or set learner.lora.vision to false"
        )
    return found


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _last(names: Iterable[str]) -> str:
    """The last parts of modules' names, in full for those that have only a number."""
    parts = {".".join(name.split(".")[-2 if name.rpartition(".")[2].isdigit() else -1 :]) for name in names}
    return ", ".join(sorted(parts))
