"""Upload an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from ral_system.errors import ConfigError, SetupError


class HubRepository:
    """A model repository on the hub. Its construction creates it, before there is anything to upload.

    The token is the one of `hf auth login` or HF_TOKEN. Raises ConfigError for a name that cannot be, and for a public
    repository that is to be private; SetupError without a token, and when the hub refuses.
    """

    def __init__(self, name: str, *, public: bool) -> None:
        self.name, self._api = name, HfApi()
        if name.count("/") != 1:
            raise ConfigError(f"--push-to-hub {name}: give it as ORGANISATION/NAME, or USER/NAME")
        if get_token() is None:
            raise SetupError("--push-to-hub: no token; set HF_TOKEN, or run: hf auth login")
        with self._explained("was not created"):
            self.url = str(self._api.create_repo(name, private=not public, exist_ok=True))
            private = self._api.model_info(name).private
        if not public and not private:
            raise ConfigError(
                f"--push-to-hub {name}: the repository exists and is public; add --public to upload to it"
            )

    def upload(self, folder: Path) -> None:
        """Upload all files of a folder in one commit."""
        with self._explained(
            f"the upload failed; the model is in {folder}, try again with: hf upload {self.name} {folder}"
        ):
            self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message="Upload model")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except HFValidationError as error:
            raise ConfigError(f"--push-to-hub {self.name}: {_first_line(error)}") from error
        except (HTTPError, OSError) as error:
            raise SetupError(f"--push-to-hub {self.name}: {what} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
