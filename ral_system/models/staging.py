"""Finding the model that the driver chose on another node: under the same path, or in that node's own hub cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ral_system.errors import SetupError

_WEIGHTS = {".safetensors", ".bin"}
_KINDS = {*_WEIGHTS, ".json", ".txt", ".model", ".jinja"}
_BLOCK, _MOST_BLOCKS = 4096, 256
_LONGEST_HEADER = 100_000_000
"""Bytes: the limit of the safetensors library."""


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
    """SHA-256 of what tells models apart, in at most a few seconds for 16 GB on a network disk; "" without a model.

    It covers names and sizes of the files, every byte of configuration, tokenizer and index, and of weights the headers
    (names, shapes and dtypes of all tensors) and 4 KiB from the middle of each tensor, at most 256 times in a file. So
    it sees that a model of the same architecture was trained otherwise, even if only a few of its tensors were. It does
    not see a change that misses all of these blocks: some rows of an embedding, a flipped bit, or, in files of more
    tensors, a tensor that is not among the 256. Raises SetupError for a file that cannot be read.
    """
    if not (folder / "config.json").is_file():
        return ""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in _KINDS or not file.is_file():
            continue
        try:
            digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
            for part in _sampled(file) if file.suffix in _WEIGHTS else (file.read_bytes(),):
                digest.update(part)
        except OSError as error:
            raise SetupError(
                f"cannot read {file} ({error.strerror}); correct its permissions, or copy it again"
            ) from error
    return digest.hexdigest()


def _sampled(file: Path) -> Iterator[bytes]:
    """Yield the header of a file of weights, and a block of each tensor; without a header, blocks that are spread."""
    with file.open("rb", buffering=0) as opened:
        descriptor, size = opened.fileno(), file.stat().st_size
        start = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
        header = os.pread(descriptor, start, 0) if start <= min(size, _LONGEST_HEADER) else b""
        yield header
        for first, last in _spread(_tensors(header, size)):
            at = max(first, (first + last - _BLOCK) // 2)
            yield os.pread(descriptor, min(_BLOCK, last - at), at)


def _tensors(header: bytes, size: int) -> list[tuple[int, int]]:
    """Return the first byte of each tensor in a safetensors file and the one after its last; of another file, parts."""
    try:
        entries = json.loads(header[8:])
        offsets = [entries[name]["data_offsets"] for name in entries if name != "__metadata__"]
        return sorted((len(header) + first, len(header) + last) for first, last in offsets)
    except (ValueError, TypeError, KeyError):
        return [*pairwise(size * i // _MOST_BLOCKS for i in range(_MOST_BLOCKS + 1))]


def _spread(tensors: list[tuple[int, int]]) -> list[tuple[int, int]]:
    count = min(len(tensors), _MOST_BLOCKS)
    return [tensors[len(tensors) * i // count] for i in range(count)]
