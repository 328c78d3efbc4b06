from __future__ import annotations

import subprocess
import sys

PROBE = """
import logging, os, sys, warnings
os.environ["VLLM_LOGGING_LEVEL"] = "DEBUG"
from ral_system.observability.quiet import silence_third_party
silence_third_party()
silence_third_party()
assert not {"torch", "transformers", "vllm", "ray", "deepspeed", "wandb", "tqdm", "numpy"} & set(sys.modules)
assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG", "what the user set wins"
late = logging.getLogger("DeepSpeed")
late.setLevel(logging.INFO)
late.addHandler(logging.StreamHandler(sys.stdout))
late.warning("noise")
late.error("signal")
logging.getLogger("ral_system.anything").warning("ours")
warnings.warn("noise")
"""


def test_it_silences_without_importing_anything() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "signal\n", "ours\n")
