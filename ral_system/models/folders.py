"""Location of a named model: a local folder, or a download from the Hugging Face Hub. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from ral_system.errors import SetupError
from ral_system.types import EngineNames

_CONFIG = "config.json"
_WITHOUT_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""File patterns of a hub model's configuration, tokenizer and processor."""


def check_named(field: str, name: str) -> None:
    """Raise SetupError for a local folder that is missing or holds no model; a hub name is not looked up."""
    folder = Path(name).expanduser()
    if _may_be_hub_name(name):
        return
    if not folder.exists():
        raise SetupError(f"{field}={name}: no such folder; correct the path, or give a hub name like org/model")
    if not (folder / _CONFIG).is_file():
        raise SetupError(f"{field}={name}: no {_CONFIG} there; give a folder in Hugging Face format")


def check_family(field: str, name: str) -> None:
    """Raise SetupError for a local model whose family is not known; a hub name is not looked up. Imports the families,
    and torch with them.
    """
    from ral_system.families.known import family_of

    if not _may_be_hub_name(name):
        family_of(model_type(Path(name).expanduser(), f"{field}={name}"), f"{field}={name}")


def model_type(folder: Path, model: str) -> str:
    """Return what the model's configuration calls its kind. Raises SetupError, which begins with `model`, for one that
    does not.
    """
    try:
        return str(json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{model}: {_CONFIG} names no model_type; copy it again") from error


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


def names_folder(name: str, folder: Path) -> bool:
    """Return whether a path or hub name leads to this folder. Of a hub name any version does: the hub is not asked."""
    if _may_be_hub_name(name):
        return f"models--{name.replace('/', '--')}" in folder.parts
    return Path(name).expanduser().resolve() == folder.resolve()


def check_model_folder(folder: Path) -> None:
    """Raise SetupError unless the folder holds a model in Hugging Face format."""
    if not (folder / _CONFIG).is_file():
        raise SetupError(f"model folder {folder}: no {_CONFIG} there; give a folder in Hugging Face format")


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
