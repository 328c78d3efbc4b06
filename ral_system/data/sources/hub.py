"""Location of a source's files: on disk, or in a dataset of the Hugging Face hub, which is downloaded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from ral_system.config.data import SourceConfig
from ral_system.data.sources.files import Survey, files_of, survey
from ral_system.errors import DataError


def located(name: str, source: SourceConfig) -> Path:
    """The file or folder of `data.sources.<name>`; of a dataset on the hub `files` and `media_files` are fetched.

    Raises DataError for files that are neither local nor on the hub.
    """
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    field = f"data.sources.{name}.path={source.path}"
    if source.path.startswith((".", "/", "~")) or source.path.count("/") != 1 or path.suffix:
        raise DataError(f"{field}: no such file or folder; correct it")
    wanted = None if source.files is None else [one for one in (source.files, source.media_files) if one is not None]
    try:
        return Path(
            snapshot_download(source.path, repo_type="dataset", revision=source.revision, allow_patterns=wanted)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DataError(
            f"{field}: not a local file or folder, and the download from the hub failed ({reason})"
        ) from error


def source_files(name: str, source: SourceConfig) -> list[Path]:
    """Return a source's files of rows. Raises DataError that names the field."""
    path = located(name, source)
    with _named(name):
        return files_of(path, source.files, f"data.sources.{name}", source.columns)


def source_survey(name: str, source: SourceConfig) -> Survey:
    """Survey a source's files. Raises DataError that names the field."""
    path = located(name, source)
    with _named(name):
        return survey(path, source.files)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"data.sources.{name}.path: {error}") from None
