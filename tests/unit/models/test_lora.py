"""Adapters in the tiny model: where they go, what they merge to, and peft's own files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ral_system.attention.read import AttentionRead
from ral_system.config.learner import LoraConfig
from ral_system.errors import ConfigError
from ral_system.models.loading import load_model
from ral_system.models.lora import Adapters
from ral_system.models.policy import PolicyModel
from ral_system.scoring.build import build_policy

TEXT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Adapt = Callable[..., tuple[PolicyModel, Adapters]]


@pytest.fixture
def adapt(tiny_model: Path) -> Adapt:
    """A policy with adapters that are not zero."""

    def adapted(targets: tuple[str, ...], *, vision: bool = False, dtype: str = "float32"):
        torch.manual_seed(5)
        policy = build_policy(tiny_model, torch.device("cpu"), AttentionRead(), dtype=dtype, temperature=1.0)  # type: ignore[arg-type]
        adapters = Adapters(policy, LoraConfig(rank=3, alpha=6.0, targets=targets, vision=vision))
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        return policy, adapters

    return adapted


def trained(policy: PolicyModel) -> set[str]:
    return {n.split(".lora_")[0].removeprefix("model.") for n, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("vision", [False, True])
def test_adapters_go_to_the_targets_and_all_else_is_frozen(adapt: Adapt, vision: bool) -> None:
    layers, visual = [f"model.language_model.layers.{i}" for i in range(2)], "model.visual.blocks.0"
    expected = {f"{layer}.{part}" for layer in layers for part in ("self_attn.q_proj", "mlp.gate_proj")}
    policy, _ = adapt(("q_proj", "mlp.gate_proj"), vision=vision)
    assert trained(policy) == expected | ({f"{visual}.mlp.gate_proj"} if vision else set())


@pytest.mark.parametrize(
    ("targets", "vision", "lines"),
    [
        (
            ("q_proj", "proj", "lm_head"),
            False,
            r"^learner.lora.targets=\['proj', 'lm_head'\]: the text model has no such matrices; it has "
            r"down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$",
        ),
        (
            ("qvk",),
            True,
            r"targets=\['qvk'\]: the model has no such matrices; it has down_proj, .* mlp.0, mlp.2, o_proj",
        ),
        (
            ("q_proj",),
            True,
            r"^learner.lora.vision=true: none of .*, which has .*proj, qkv, up_proj; add one of them, or",
        ),
    ],
)
def test_targets_that_are_not_there_are_one_line(
    adapt: Adapt, targets: tuple[str, ...], vision: bool, lines: str
) -> None:
    with pytest.raises(ConfigError, match=lines) as error:
        adapt(targets, vision=vision)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_are_a_plain_models_and_leave_the_learners_as_they_are(
    adapt: Adapt, tiny_model: Path, dtype: str
) -> None:
    policy, adapters = adapt(("q_proj", "down_proj", "qkv"), vision=True, dtype=dtype)
    plain = load_model(tiny_model, dtype=dtype).state_dict()  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    for _ in range(2):  # rounding would add up
        merged = dict(adapters.merged(policy.model.state_dict().items()))
        assert list(merged) == list(plain)
        changed = {name for name, weight in merged.items() if not torch.equal(weight, plain[name])}
    after = policy.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert changed == {f"{module}.weight" for module in trained(policy)} and len(changed) == 6
    for name in changed:
        module = name.removesuffix(".weight")
        a, b = (before[f"{module}.lora_{which}.default.weight"].double() for which in "AB")
        exact = (plain[name].double() + 2 * b @ a).to(plain[name].dtype)
        assert torch.allclose(merged[name], exact, rtol=1e-2 if dtype == "bfloat16" else 1e-6, atol=1e-7)


def test_peft_reads_the_adapter_and_merges_it_to_what_is_published(
    adapt: Adapt, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    policy, adapters = adapt((*TEXT, "qkv"), vision=True)
    state = policy.model.state_dict()
    adapters.save(state, tmp_path / "adapter", tiny_model)
    theirs = PeftModel.from_pretrained(load_model(tiny_model, dtype="float32"), str(tmp_path / "adapter"))
    assert theirs.peft_config["default"].base_model_name_or_path == str(tiny_model)
    merged = theirs.merge_and_unload().state_dict()
    ours = dict(adapters.merged(state.items()))
    assert merged.keys() == ours.keys()
    for name, weight in ours.items():
        assert torch.allclose(merged[name], weight, rtol=1e-6, atol=1e-7), name
