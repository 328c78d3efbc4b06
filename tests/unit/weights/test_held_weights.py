"""Reading published tensors back from a model that renames, fuses, pads, packs and ties them as vLLM does."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest, Weights
from ral_system.weights.held import VllmReader, held_manifest
from ral_system.weights.manifest import build_weights, verify_loaded
from ral_system.weights.transfer.object_store import ReceivedArrays


class Mapper:
    def map_name(self, name: str) -> str:
        return name.replace("model.", "decoder.", 1)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(3, 8)
        self.o_proj = nn.Linear(3, 5, bias=False)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 3)  # 7 words, padded to 8
        self.layer = Layer()


class Engine(nn.Module):
    hf_to_vllm_mapper = Mapper()
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "qkv": ["qkv"]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.lm_head = nn.Linear(3, 8, bias=False)
        self.lm_head.weight = self.decoder.embed.weight


def make(dtype: torch.dtype = torch.float32, engine_dtype: torch.dtype = torch.float32) -> tuple[Engine, Weights]:
    torch.manual_seed(0)
    q, k, v, bias = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2, 3), torch.randn(8)
    v[0, 0] = -0.0  # multiplying with the identity loses the sign of zero
    embed, out = torch.randn(7, 3), torch.randn(5, 3)
    published = {"model.embed.weight": embed, "model.layer.o_proj.weight": out}
    for name, weight, rows in (("q", q, slice(0, 4)), ("k", k, slice(4, 6)), ("v", v, slice(6, 8))):
        published |= {f"model.layer.{name}_proj.weight": weight, f"model.layer.{name}_proj.bias": bias[rows]}
    engine = Engine()
    with torch.no_grad():
        engine.decoder.embed.weight[:7] = embed
        engine.decoder.layer.qkv_proj.weight.copy_(torch.cat([q, k, v]))
        engine.decoder.layer.qkv_proj.bias.copy_(bias)
    for module, packed in ((engine.decoder.layer.qkv_proj, torch.cat([q, k, v])), (engine.decoder.layer.o_proj, out)):
        module.weight = nn.Parameter(torch.empty(0, dtype=engine_dtype))  # as oneDNN packing leaves it
        matrix = packed.to(dtype).to(engine_dtype)
        module.cpu_linear = lambda x, weight, bias, matrix=matrix: x @ matrix.T
    engine.decoder.embed.to(engine_dtype)
    engine.decoder.layer.qkv_proj.bias.data = engine.decoder.layer.qkv_proj.bias.data.to(engine_dtype)
    return engine, build_weights(5, {name: tensor.to(dtype) for name, tensor in published.items()})


@pytest.mark.parametrize(
    ("dtype", "engine_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_an_engine_with_the_published_weights_has_the_published_manifest(
    dtype: torch.dtype, engine_dtype: torch.dtype
) -> None:
    engine, weights = make(dtype, engine_dtype)
    verify_loaded(weights.manifest, held(engine, weights))


def test_a_change_of_a_fused_part_names_that_part() -> None:
    engine, weights = make()
    with torch.no_grad():
        engine.decoder.layer.qkv_proj.bias[5] += 1e-6
    with pytest.raises(WeightSyncError, match=r"1 different: model.layer.k_proj.bias "):
        verify_loaded(weights.manifest, held(engine, weights))


def test_a_stale_packed_copy_is_found_behind_a_current_parameter() -> None:
    engine, weights = make()
    engine.lm_head.cpu_linear = lambda x, weight, bias: x @ torch.zeros(3, 8)
    tied = build_weights(
        5, {**_tensors(weights), "lm_head.weight": torch.from_numpy(weights.arrays["model.embed.weight"])}
    )
    with pytest.raises(WeightSyncError, match=r"1 different: lm_head.weight "):
        verify_loaded(tied.manifest, held(engine, tied))


def test_what_was_not_published_or_has_no_place_is_named() -> None:
    engine, weights = make()
    less = build_weights(5, {k: v for k, v in _tensors(weights).items() if "embed" not in k})
    with pytest.raises(WeightSyncError, match=r"1 unexpected: engine:decoder.embed.weight"):
        verify_loaded(less.manifest, held(engine, less))
    more = build_weights(5, {**_tensors(weights), "model.extra.weight": torch.zeros(1)})
    with pytest.raises(WeightSyncError, match=r"1 missing: model.extra.weight"):
        verify_loaded(more.manifest, held(engine, more))


def test_bytes_damaged_on_the_way_differ_from_the_published_manifest() -> None:
    engine, weights = make()
    damaged = weights.arrays["model.embed.weight"].copy()
    damaged[0, 0] += 1
    with torch.no_grad():
        engine.decoder.embed.weight[0, 0] += 1  # the engine loads what it receives
    loaded = held(engine, replace(weights, arrays={**weights.arrays, "model.embed.weight": damaged}))
    with pytest.raises(WeightSyncError, match=r"1 different: model.embed.weight "):
        verify_loaded(weights.manifest, loaded)


def held(engine: Engine, weights: Weights) -> WeightManifest:
    return held_manifest(
        VllmReader(engine, {name: array.shape for name, array in weights.arrays.items()}), ReceivedArrays(weights)
    )


def _tensors(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights.arrays.items()}
