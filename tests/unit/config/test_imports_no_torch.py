"""The command line answers `--help` and `--cfg job` without loading torch."""

import pkgutil
import subprocess
import sys

import pytest

import ral_system.config

MODULES = [
    "ral_system.config",
    *(f"ral_system.config.{module.name}" for module in pkgutil.iter_modules(ral_system.config.__path__)),
    "ral_system.types",
    "ral_system.protocols",
    "ral_system.errors",
]
HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "hydra")


@pytest.mark.parametrize("module", MODULES)
def test_importing_configuration_and_types_stays_light(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
