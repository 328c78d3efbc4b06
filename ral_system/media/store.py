"""Pictures and videos by content: encoded files, or links to them, by their sha256. Prompts carry `Media`, not pixels.

Every process of a run opens the same folder, so a file is written once, shared by all and checked when it is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import av
import numpy as np
import PIL
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.blinding import PaintedMedia, painted
from ral_system.media.images import ImageLimits, decode_image
from ral_system.media.pixel_cache import PixelCache, node_folder
from ral_system.media.videos import VideoLimits, decode_video, encode_frames
from ral_system.types import Clip, Media, VideoSampling

DECODERS = (1, PIL.__version__, av.__version__)
"""What decides over pixels besides the file; the number is raised with every change of ours that does."""
_CACHED_BYTES = 256 * 2**20
_SMALL_BYTES = 2**18
"""Pictures up to this size take a millisecond or less to decode: no file is kept for them."""


class MediaStore:
    """`<folder>/<first two hex digits>/<sha256>.image` or `.video`. Safe for many writers: a file appears whole or not
    at all.

    A process keeps 256 MiB of decoded pixels for itself; with a `cache` the processes of a node share more. In `shared`
    several stores keep once what all would hold: copies of bytes from outside, to which each has links of its own, and
    what is known of sources.
    """

    def __init__(self, folder: Path, cache: PixelCache | None = None, *, shared: Path | None = None) -> None:
        self.folder, self.shared, self._cache = folder, shared, cache
        self._decoded: OrderedDict[Media, np.ndarray] = OrderedDict()
        self._decoded_bytes = 0
        self._lock = threading.Lock()

    def put(self, image: Image.Image) -> Media:
        """Store a picture (as RGB) and return its reference; a picture that is already there is not written again."""
        encoded = _encode(image)
        return self._stored(Media(hashlib.sha256(encoded).hexdigest(), *image.size), encoded)

    def put_frames(self, frames: np.ndarray, fps: int, sampling: VideoSampling) -> Media:
        """Store a video of uint8 [frames, height, width, 3] at `fps`, without loss; the same frames are one file."""
        return self.put_video(encode_frames(frames, fps), sampling, VideoLimits())

    def put_image(self, source: bytes | Path, limits: ImageLimits) -> Media:
        """Store a picture from outside unchanged. A file stays where it is: the store links to it and notices if it
        changes. Raises DataError for one that cannot be decoded (`decode_image`).
        """
        encoded = source if isinstance(source, bytes) else _read(source)
        size = decode_image(encoded, limits).size
        return self._stored(Media(hashlib.sha256(encoded).hexdigest(), *size), source)

    def put_video(self, source: bytes | Path, sampling: VideoSampling, limits: VideoLimits) -> Media:
        """Store a video like `put_image`; all its sampled frames are decoded once (`decode_video`)."""
        encoded = source if isinstance(source, bytes) else _read(source)
        _, outline = decode_video(encoded, sampling, limits, lambda width, height: (28, 28))  # whether they decode
        clip = Clip(sampling, outline.times_s, outline.duration_s)
        digest = hashlib.sha256(encoded).hexdigest()
        return self._stored(Media(digest, outline.width_px, outline.height_px, clip), source)

    def known(self, key: str, source: bytes | Path) -> Media | None:
        """Return the medium that `note` recorded for a source's key (letters and digits), and store it here too. None
        if that takes decoding it again.
        """
        try:
            found = Media.parse(json.loads(self._note(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if isinstance(source, bytes) or source.is_file():
            return self._stored(found, source)
        copy = self._copy(found)  # put together from a folder of frames
        if not _holds(copy, found.digest):
            return None
        self._link_to_copy(found)
        return found

    def note(self, key: str, media: Media) -> None:
        """Record which medium a source key refers to, so `known` need not decode it again."""
        with _whole(self._note(key)) as partial:
            partial.write_text(json.dumps(asdict(media)), encoding="utf-8")

    def _note(self, key: str) -> Path:
        name = hashlib.sha256(repr((key, DECODERS)).encode()).hexdigest()
        return (self.shared or self.folder) / "sources" / name[:2] / f"{name}.json"

    def open(self, media: Media) -> Image.Image:
        """A picture as RGB, in the size that its reference says. Raises DataError."""
        return Image.fromarray(self.frames(media)[0])

    def frames(self, media: Media) -> np.ndarray:
        """uint8 [frames, height, width, 3], RGB, in the size that the reference says; of a picture one frame. Shared
        with later callers: do not modify it. Raises DataError.
        """
        if isinstance(media, PaintedMedia):
            return painted(self.frames(media.whole), media)
        with self._lock:
            pixels = self._decoded.get(media)
            if pixels is None:
                pixels = self._decoded[media] = self._pixels(media)
                self._decoded_bytes += pixels.nbytes
                while self._decoded_bytes > _CACHED_BYTES and len(self._decoded) > 1:
                    self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
            self._decoded.move_to_end(media)
        return pixels

    def pixel_name(self, media: Media) -> str:
        """Return the name of the pixels in the cache. It changes with the original file. Raises OSError without one."""
        status = self.path(media).stat()
        return hashlib.sha256(repr((media, status.st_size, status.st_mtime_ns, DECODERS)).encode()).hexdigest()

    def fill_cache(self, media: Media) -> None:
        """Put the pixels into this node's cache, even if this process keeps its own copy. Raises DataError."""
        self._pixels(media)

    def path(self, media: Media) -> Path:
        """Return the path that the file has, or would have."""
        return _place(self.folder, media)

    def _stored(self, media: Media, source: bytes | Path) -> Media:
        if isinstance(source, Path):
            _link(self.path(media), source.resolve())
            return media
        copy = self._copy(media)
        if not (
            copy.exists() if self.shared is None else _holds(copy, media.digest)
        ):  # a copy that others damaged is written again
            with _whole(copy) as partial:
                partial.write_bytes(source)
        self._link_to_copy(media)
        return media

    def _copy(self, media: Media) -> Path:
        return _place(self.shared or self.folder, media)

    def _link_to_copy(self, media: Media) -> None:
        if self.shared is not None:
            path = self.path(media)
            _link(path, Path(os.path.relpath(self._copy(media), path.parent)))

    def _pixels(self, media: Media) -> np.ndarray:
        if self._cache is None or not worth_keeping(media):
            return self._decode(media)
        try:
            name = self.pixel_name(media)
        except OSError:
            return self._decode(media)  # this raises the error with its reason
        return self._cache.get(name, lambda: self._decode(media))

    def _decode(self, media: Media) -> np.ndarray:
        path = self.path(media)
        try:
            encoded = _read(path)
        except DataError as error:
            raise DataError(f"media {media.digest}: {error}; is the folder shared?") from None
        found = hashlib.sha256(encoded).hexdigest()
        if found != media.digest:
            linked = f"delete {self.folder.resolve().parent} to prepare the data again"
            remedy = linked if path.is_symlink() else "delete it to store it again"
            raise DataError(
                f"media {media.digest}: {path.resolve()} has changed since it was stored, or is damaged (its sha256 is "
                f"{found}); put it back, or {remedy}"
            )
        size = (media.width_px, media.height_px)
        try:
            if media.clip is None:
                image = decode_image(encoded, ImageLimits())
                return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))[None]
            frames, _ = decode_video(encoded, media.clip.sampling, VideoLimits(), lambda width, height: size)
            return frames
        except DataError as error:
            raise DataError(f"media {media.digest}: {path}: {error}") from None


def worth_keeping(media: Media) -> bool:
    """Return whether the medium's pixels go to the cache of a node."""
    return media.frames * media.width_px * media.height_px * 3 > _SMALL_BYTES


def originals(folder: Path, at_most: int = 16) -> list[Path]:
    """Return some of the files from outside that a store links to: one of each subfolder, which is a random sample.

    There are none in a store of generated media, or of copies.
    """
    found: list[Path] = []
    for subfolder in sorted(folder.glob("[0-9a-f][0-9a-f]")):
        links = (path for path in subfolder.iterdir() if path.is_symlink() and path.readlink().is_absolute())
        found += [path.readlink() for path in islice(links, 1)]
        if len(found) == at_most:
            break
    return found


def node_store(folder: Path, cache_gib: float) -> MediaStore:
    """The store in `folder`, whose decoded pixels the processes of this node share; 0 GiB: each decodes for itself."""
    cache = PixelCache(node_folder(), int(cache_gib * 2**30)) if cache_gib > 0 else None
    return MediaStore(folder, cache)


def _place(folder: Path, media: Media) -> Path:
    return folder / media.digest[:2] / f"{media.digest}.{media.kind}"


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a name to write under, which becomes `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    yield partial
    os.replace(partial, path)  # noqa: PTH105 (atomic by name, and the name says so)


def _link(path: Path, target: Path) -> None:
    """Link to `target`, the file that was checked last."""
    if not path.is_symlink() or path.readlink() != target:
        with _whole(path) as partial:
            partial.symlink_to(target)


def _holds(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or type(error).__name__})") from None


def _encode(image: Image.Image) -> bytes:
    """PNG of the pixels alone: metadata such as a colour profile or a resolution does not enter the digest."""
    pixels = image.convert("RGB")
    bare = Image.frombytes("RGB", pixels.size, pixels.tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
