"""Weights in a safetensors file of the run's folder: for engines that share a disk with the learner, and no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Piece, Setting, WeightStream


@dataclass(frozen=True, slots=True)
class FileOffer:
    """A version in a file. Example: `FileOffer(manifest, names, Path("/runs/quickstart/weights/12.safetensors"))`"""

    manifest: WeightManifest
    names: Sequence[str]
    path: Path


class Files:
    """Offers the file that rank 0 wrote into `folder`. Files of versions that nobody can be waiting for are removed:
    all but the newest `waiting` and the one before them.
    """

    keeps_offers = True

    def __init__(self, setting: Setting) -> None:
        self._folder, self._waiting, self._rank = setting.folder, setting.waiting, setting.rank

    def offer(self, manifest: WeightManifest, names: Sequence[str], weights: WeightStream) -> FileOffer | None:
        """Write the weights, on rank 0, under a name that appears when the file is whole."""
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor, _ in weights(names) if self._rank == 0}
        if self._rank:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        version = manifest.version
        path, partial = self._folder / f"{version}.safetensors", self._folder / f".partial_{version}"
        save_file(tensors, partial)
        partial.rename(path)
        self._forget(version)
        return FileOffer(manifest, tuple(names), path)

    def send(self, offer: FileOffer, weights: WeightStream) -> None:
        """Do nothing: the file holds the weights."""

    def receive(self, offer: FileOffer) -> Iterator[Piece]:
        """Read the file, tensor by tensor. Raises WeightSyncError if it is missing or damaged."""
        version = offer.manifest.version
        try:
            file = safe_open(offer.path, "pt")
        except (OSError, SafetensorError) as error:
            raise WeightSyncError(
                f"weights {version}: {offer.path} cannot be read ({error}); is the folder shared?"
            ) from error
        if set(file.keys()) != set(offer.names):
            raise WeightSyncError(f"weights {version}: {offer.path} holds other tensors than published")
        for name in offer.names:
            yield Piece(name, file.get_tensor(name))

    def _forget(self, version: int) -> None:
        written = [file for file in self._folder.glob("*.safetensors") if file.stem.isdecimal()]
        old = [f for f in written if not version - self._waiting <= int(f.stem) <= version]  # or an interrupted run's
        for file in (*old, *self._folder.glob(".partial_*")):
            file.unlink()
