"""Location of a source's files: on disk, or in a dataset of the Hugging Face hub, which is downloaded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ral_system.config.data import SourceConfig
from ral_system.data.sources.files import Survey, files_of, survey
from ral_system.errors import DataError


def check_sources(sources: Mapping[str, SourceConfig]) -> None:
    """Raise DataError for a file that is neither here nor named like a dataset of the hub, which is not looked up."""
    for name, source in sources.items():
        _found_here(name, source)


def located(name: str, source: SourceConfig) -> Path:
    """The file or folder of `data.sources.<name>`; of a dataset on the hub `files` and `media_files` are fetched.

    Raises DataError for files that are neither local nor on the hub.
    """
    if (path := _found_here(name, source)) is not None:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = None if source.files is None else [one for one in (source.files, source.media_files) if one is not None]
    try:
        return Path(
            snapshot_download(source.path, repo_type="dataset", revision=source.revision, allow_patterns=wanted)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DataError(
            f"{_path_field(name, source)}: not a local file or folder, and the download from the hub failed ({reason})"
        ) from error


def _found_here(name: str, source: SourceConfig) -> Path | None:
    """Return the local file or folder; None for what may be a dataset's name."""
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    if source.path.startswith((".", "/", "~")) or source.path.count("/") != 1 or path.suffix:
        raise DataError(f"{_path_field(name, source)}: no such file or folder; correct it")
    return None


def _path_field(name: str, source: SourceConfig) -> str:
    return f"data.sources.{name}.path={source.path}"


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
