"""Weights in a safetensors file of the run's folder: for engines that share a disk with the learner, and no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ral_system.errors import WeightSyncError
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.manifest import digest_array, to_host
from ral_system.weights.transfer.object_store import differing
from ral_system.weights.transfer.transfer import FullState


@dataclass(frozen=True, slots=True)
class FileOffer:
    """A version in a file. Example: `FileOffer(manifest, Path("/runs/quickstart/weights/12.safetensors"))`"""

    manifest: WeightManifest
    path: Path


class Files:
    """Offers the file that rank 0 wrote into `folder`. Files of versions that nobody can be waiting for are removed:
    all but the newest `waiting` and the one before them.
    """

    keeps_offers = True

    def __init__(self, folder: Path, waiting: int = 1) -> None:
        self._folder, self._waiting = folder, waiting

    def offer(self, version: int, full_state: FullState) -> FileOffer | None:
        """Write the weights, on rank 0, under a name that appears when the file is whole."""
        state = full_state()
        if state is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        manifest = WeightManifest(version, {name: digest_array(*to_host(tensor)) for name, tensor in tensors.items()})
        path, partial = self._folder / f"{version}.safetensors", self._folder / f".partial_{version}"
        save_file(tensors, partial)
        partial.rename(path)
        self._forget(version)
        return FileOffer(manifest, path)

    def send(self, offer: FileOffer) -> None:
        """Do nothing: the file holds the weights."""

    def receive(self, offer: FileOffer) -> ReceivedFile:
        """Open the file. Raises WeightSyncError if it is missing or damaged."""
        try:
            return ReceivedFile(offer)
        except (OSError, SafetensorError) as error:
            raise WeightSyncError(
                f"weights {offer.manifest.version}: {offer.path} cannot be read ({error}); is the folder shared?"
            ) from error

    def _forget(self, version: int) -> None:
        for file in self._folder.glob("*.safetensors"):
            if not version - self._waiting <= int(file.stem) <= version:  # later ones are an interrupted run's
                file.unlink()


class ReceivedFile:
    """Tensors of an open safetensors file, read as they are asked for."""

    def __init__(self, offer: FileOffer) -> None:
        self._offer, self._file = offer, safe_open(offer.path, "pt")
        if set(self._file.keys()) != offer.manifest.tensors.keys():
            raise WeightSyncError(f"weights {offer.manifest.version}: {offer.path} holds other tensors than published")

    @property
    def manifest(self) -> WeightManifest:
        """The identity of what was published."""
        return self._offer.manifest

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors in published order."""
        for name in self.manifest.tensors:
            yield name, self._file.get_tensor(name)

    def identity(self, name: str, held: Sequence[Tensor]) -> TensorDigest | None:
        """Digest of the bytes in the file, or of a copy that differs from them."""
        received = self._file.get_tensor(name)
        if (other := differing(held, received)) is not None:
            return other
        return digest_array(*to_host(received)) if held else None
