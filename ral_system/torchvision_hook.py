"""Lets torchvision import beside a torch build that its compiled operators do not fit.

torchvision's `_meta_registrations` refers to `torchvision::nms`, which a mismatched wheel fails to register
("operator torchvision::nms does not exist"). Declaring the missing schemas first cures the import; Qwen processors then
work, since they need only torchvision's pure-Python transforms. A machine with matching wheels needs none of this.

vLLM imports torchvision in helper processes too, so `ral-doctor --fix` installs the hook for the whole environment:
a `.pth` file runs `install()` at every interpreter start, which costs microseconds and imports nothing.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

PTH_NAME = "ral_torchvision_hook.pth"
# One line, since `site` runs each line by itself. It outlives an uninstall of this package, and must then be silent.
PTH_TEXT = (
    "import sys; exec("
    "'try:\\n from ral_system.torchvision_hook import install\\n install()\\nexcept ImportError:\\n pass')\n"
)

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareBeforeImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            declare_missing_operators()
        return None


def install() -> None:
    """Declare the operators when torchvision is first imported, and not before."""
    if not any(isinstance(finder, _DeclareBeforeImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareBeforeImport())


def declare_missing_operators() -> None:
    """Define the schemas that torchvision's own library did not."""
    import torch

    for schema in _SCHEMAS:
        name = schema.split("(")[0]
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _KEPT_ALIVE.append(library)


_KEPT_ALIVE: list[object] = []
