"""The trivial engine: one process, plain torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import TensorBatch
from ral_system.models.host_copies import HostCopies, give_back_free_memory
from ral_system.models.named_weights import named_weights
from ral_system.models.policy import PolicyModel, PolicyOutput
from ral_system.training.optim import OptimSettings, adamw, optimizer_state, parameter_groups, set_rates
from ral_system.types import Held


class TorchEngine:
    """AdamW on one device. Deterministic on CPU: the same inputs give bitwise the same weights."""

    def __init__(
        self, policy: PolicyModel, settings: OptimSettings, device: torch.device, *, gradient_checkpointing: bool
    ) -> None:
        self.device = device
        if gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = policy.to(device)
        self._settings = settings
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._groups = parameter_groups(policy, settings.rate_factors)
        self._optimizer = adamw(self._groups, settings)
        self._host = HostCopies(device)
        self._updates = 0

    def forward(
        self, batch: TensorBatch, reads: Sequence[AttentionRead] = (), tokens: TokenRead | None = None
    ) -> PolicyOutput:
        return self.policy(batch.to(self.device), reads, tokens)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._settings.max_grad_norm)
        set_rates(self._optimizer, self._groups, self._settings.rate(self._updates))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1
        return float(norm)

    def learning_rate(self) -> float:
        return self._settings.rate(max(0, self._updates - 1))

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        return values

    def trained_weights(self) -> Mapping[str, Tensor]:
        return self._trained

    def weights_replaced(self) -> None:
        pass  # they are the parameters themselves

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, w) for name, w in named_weights(self.policy.model).items() if name in names)

    def hold(self, held: Held) -> None:
        if held < Held.ALL:
            self._host.leave(optimizer_state(self._optimizer))
        if held < Held.WEIGHTS:
            self._host.leave(dict(self.policy.named_parameters()))
        if held is Held.ALL:
            self._host.come_back()
        give_back_free_memory(self.device)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach() for name, p in self._trained.items()}, folder / "weights.safetensors")
        moments = {
            f"{name}/{key}": self._optimizer.state[parameter][key]
            for name, parameter in self._trained.items()
            if parameter in self._optimizer.state
            for key in ("exp_avg", "exp_avg_sq", "step")
        }
        save_file(moments, folder / "optimizer.safetensors")
        (folder / "engine.json").write_text(json.dumps({"updates": self._updates}))

    def load(self, folder: Path) -> None:
        with torch.no_grad():
            for name, weight in load_file(folder / "weights.safetensors").items():
                self._trained[name].copy_(weight)
        moments = load_file(folder / "optimizer.safetensors")
        for name, parameter in self._trained.items():
            if f"{name}/step" in moments:
                self._optimizer.state[parameter] = {
                    key: moments[f"{name}/{key}"].to(self.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self._updates = json.loads((folder / "engine.json").read_text())["updates"]
