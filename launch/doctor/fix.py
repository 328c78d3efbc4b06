"""`--fix`: the two repairs that a CPU environment needs. Without a mismatch it does nothing."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from ral_system.launch.doctor.check import probe, version_of
from ral_system.launch.doctor.packages import AUDIO
from ral_system.torchvision_hook import PTH_NAME, PTH_TEXT

_WITHOUT_HOOK = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "ral_system.torchvision_hook"]
import torchvision
"""
_WITH_HOOK = "import ral_system.torchvision_hook as hook; hook.install(); import torchvision"


def fix() -> list[str]:
    """Repair what can be repaired, and return one line for each repair done or still to be done by hand."""
    done = [remove_broken(name) for name in AUDIO]
    done.append(install_hook(Path(sysconfig.get_path("purelib"))))
    return [line for line in done if line]


def remove_broken(name: str) -> str:
    """Uninstall a package that does not load: transformers would import it, and fail with it."""
    if version_of(name) is None:
        return ""
    loaded = probe(f"import {name}")
    if loaded.ok or loaded.timed_out:
        return ""
    command = [sys.executable, "-m", "pip", "uninstall", "--yes", name]
    if sys.prefix == sys.base_prefix:  # other programs may use it: leave the decision to the user
        return f"{name} does not load, and this is not a virtual environment; to remove it: {' '.join(command[1:])}"
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return f"removed {name}, which does not load: {loaded.error}"


def install_hook(site_packages: Path) -> str:
    """Declare torchvision's missing operators at every interpreter start, if it cannot load without them."""
    file = site_packages / PTH_NAME
    if version_of("torchvision") is None or (file.exists() and file.read_text() == PTH_TEXT):
        return ""
    if probe(_WITHOUT_HOOK).ok or not probe(_WITH_HOOK).ok:
        return ""
    try:
        file.write_text(PTH_TEXT)
    except OSError as error:
        return f"could not write the start-up hook for torchvision: {error}"
    return f"wrote {file}: torchvision now loads beside this torch"
