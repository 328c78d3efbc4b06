"""Location of a named model: a local folder, or a download from the Hugging Face Hub. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ral_system.errors import SetupError
from ral_system.types import EngineNames

_WITHOUT_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""File patterns of a hub model's configuration, tokenizer and processor."""


def check_named(field: str, name: str) -> None:
    """Raise SetupError for a local folder that is missing or holds no model; a hub name is not looked up."""
    folder = Path(name).expanduser()
    if _may_be_hub_name(name):
        return
    if not folder.exists():
        raise SetupError(f"{field}={name}: no such folder; correct the path, or give a hub name like org/model")
    if not (folder / "config.json").is_file():
        raise SetupError(f"{field}={name}: no config.json there; give a folder in Hugging Face format")


def local_model_folder(field: str, name: str, *, weights: bool = True) -> Path:
    """Return the folder of a model given by path or by hub name (`org/model`, downloaded once). Raises SetupError that
    names the field, such as `start_model`, that the model was given in.

    Without `weights` a download has only the configuration, the tokenizer and the processor.
    """
    if not _may_be_hub_name(name):
        folder = Path(name).expanduser()
        check_model_folder(folder)
        return folder.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=None if weights else list(_WITHOUT_WEIGHTS)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300].rstrip(".")
        raise SetupError(
            f"{field}={name}: not a local folder, and the download from the Hugging Face Hub failed ({reason}); give a "
            "local folder, or give this machine access to the hub"
        ) from error


def check_model_folder(folder: Path) -> None:
    """Raise SetupError unless the folder holds a model in Hugging Face format."""
    if not (folder / "config.json").is_file():
        raise SetupError(f"model folder {folder}: no config.json there; give a folder in Hugging Face format")


def check_tokenizer_folder(field: str, name: str) -> Path:
    """Return the local folder of a tokenizer. Raises SetupError unless it holds one in Hugging Face format."""
    folder, remedy = Path(name).expanduser(), "give a local folder with a tokenizer.json"
    if not folder.is_dir():
        raise SetupError(f"{field}={name}: no such folder; {remedy}")
    if not (folder / "tokenizer.json").is_file():
        raise SetupError(f"{field}={name}: no tokenizer.json there; {remedy}")
    return folder


def check_engine_names(folder: Path, names: EngineNames) -> None:
    """Raise SetupError if weights of the folder have names that vLLM does not know, as transformers gives to those of
    a model that was built in it and not downloaded.

    Files leave out a `model.` that published names begin with.
    """
    from safetensors import safe_open

    prefixes = {old.removeprefix("model."): new.removeprefix("model.") for old, new in names.prefixes.items()}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            for name in weights.keys():  # noqa: SIM118 (it cannot be iterated over)
                for old, new in prefixes.items():
                    if name.removeprefix("model.").startswith(old) and new not in name:
                        raise SetupError(
                            f"model folder {folder}: {file.name} has {name}, which vLLM knows as "
                            f"{name.replace(old, new)}; rename all {old}… in the safetensors files, which transformers "
                            "loads as well, or take the published model"
                        )


def _may_be_hub_name(name: str) -> bool:
    """Return whether a name is like org/model and neither it nor a folder called org exists here."""
    organisation = name.partition("/")[0]
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(organisation).exists()
