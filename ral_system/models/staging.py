"""Finding the model that the driver chose on another node: under the same path, or in that node's own hub cache."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ral_system.errors import SetupError

_KINDS = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"}


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """A model folder on the driver's node, and what other nodes need to find the same one.

    Example: `ModelCopy(Path("/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc59"), "9f3a…",
    "Qwen/Qwen2.5-VL-7B-Instruct", "cc59")`
    """

    folder: Path
    digest: str
    repo: str | None
    """Name on the Hugging Face Hub, of a snapshot in a hub cache."""
    revision: str | None

    @classmethod
    def of(cls, folder: Path) -> ModelCopy:
        """The copy in a folder of this node."""
        owner, snapshots = folder.parent.parent.name, folder.parent.name
        if owner.startswith("models--") and snapshots == "snapshots":
            return cls(folder, model_digest(folder), owner.removeprefix("models--").replace("--", "/"), folder.name)
        return cls(folder, model_digest(folder), None, None)

    def find(self) -> Path:
        """The folder in which this node has the same model. A hub snapshot that it lacks is downloaded, once per node.

        Raises SetupError, whose message goes behind "node X ".
        """
        if model_digest(self.folder) == self.digest:
            return self.folder
        if self.repo is not None:
            return self._from_hub()
        if (self.folder / "config.json").is_file():
            raise SetupError(
                f"has different files in model folder {self.folder} from the driver's node; copy the folder again, or "
                "put it on a volume that every node mounts"
            )
        raise SetupError(f"cannot read model folder {self.folder}; put it on a volume that every node mounts")

    def _from_hub(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        remedy = "put HF_HOME on a volume that every node mounts, or let the node reach the Hugging Face Hub"
        try:
            found = Path(snapshot_download(str(self.repo), revision=self.revision))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise SetupError(
                f"cannot read model folder {self.folder}, and the download of {self.repo} failed ({reason}); {remedy}"
            ) from error
        if model_digest(found) != self.digest:
            raise SetupError(f"has different files of {self.repo} in {found} from the driver's node; {remedy}")
        return found


def model_digest(folder: Path) -> str:
    """SHA-256 of `config.json` and of the names and sizes of the files that make a model; "" without a model."""
    try:
        digest = hashlib.sha256((folder / "config.json").read_bytes())
    except OSError:
        return ""
    for file in sorted(folder.iterdir()):
        if file.suffix in _KINDS and file.is_file():
            digest.update(f"\n{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()
