"""An environment whose torchvision does not fit its torch, and that lacks the hook: one line says what to run."""

import subprocess
import sys
from pathlib import Path

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.errors import SetupError
from ral_system.launch.mistakes import explain, explain_import
from ral_system.launch.refused import leaving_nothing

REASON = "operator torchvision::nms does not exist"
LINE = (
    f"torchvision does not fit the installed torch ({REASON}); run `ral-doctor --fix` in this Python environment, on a "
    "cluster on every node"
)
UNFIT = f"""
import sys
from importlib.abc import MetaPathFinder

class Unfit(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            raise RuntimeError({REASON!r})

sys.meta_path.insert(0, Unfit())
from {{module}} import main
sys.exit(main({{given}}))
"""


@pytest.mark.long  # each imports torch and transformers
@pytest.mark.parametrize(
    ("module", "given", "arguments"),
    [
        ("ral_system.launch.plan", "", ["experiment=quickstart"]),
        ("ral_system.launch.train", "", ["experiment=smoke", "cluster=local"]),
        ("ral_system.launch.export", "", ["run", "exported"]),
        ("ral_system.launch.study.icl", "['--quick']", []),
    ],
)
def test_a_command_says_what_to_run(tmp_path: Path, module: str, given: str, arguments: list[str]) -> None:
    """It leaves no folder behind."""
    code = UNFIT.format(module=module, given=given)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {LINE}" and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def behind(cause: Exception) -> ImportError:
    """The error of an import by transformers that failed because of another one."""
    for name in ("image_utils", "AutoProcessor"):
        error = ImportError(f"Could not import module '{name}'. Are this object's requirements defined correctly?")
        error.__cause__, cause = cause, error
    return error


def test_the_cause_is_found_behind_the_errors_of_transformers() -> None:
    error = behind(RuntimeError(REASON))
    for found in (explain(error, TrainConfig), explain_import(error), explain(RuntimeError(REASON), TrainConfig)):
        assert isinstance(found, SetupError) and str(found) == LINE
    other = behind(RuntimeError("operator torch::nms does not exist"))
    assert explain(other, TrainConfig) is None
    with pytest.raises(ImportError, match="Could not import module") as caught:
        explain_import(other)
    assert caught.value is other


def test_a_start_that_cannot_import_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "one"
    with pytest.raises(ImportError), leaving_nothing(root):
        root.mkdir(parents=True)
        raise behind(RuntimeError(REASON))
    assert not list(tmp_path.iterdir())
