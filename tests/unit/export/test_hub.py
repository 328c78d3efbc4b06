from pathlib import Path

import pytest
from huggingface_hub import constants

from ral_system.errors import ConfigError, SetupError
from ral_system.export import hub
from ral_system.export.hub import HubRepository
from tests.hub import Hub


@pytest.fixture
def online(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")


def test_an_upload_without_a_token_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(SetupError, match=r"^--push-to-hub: no token; set HF_TOKEN, or run: hf auth login$"):
        HubRepository("lab/model", public=False)


def test_a_name_that_the_hub_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    with pytest.raises(ConfigError, match=r"^--push-to-hub model: give it as ORGANISATION/NAME, or USER/NAME$"):
        HubRepository("model", public=False)
    with pytest.raises(ConfigError, match=r"^--push-to-hub lab/a--b: .*'lab/a--b'"):
        HubRepository("lab/a--b", public=False)


@pytest.mark.usefixtures("online")
def test_a_public_repository_takes_nothing_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Hub, "private", False)
    with pytest.raises(ConfigError, match=r"^--push-to-hub lab/model: the repository exists and is public; add"):
        HubRepository("lab/model", public=False)
    (tmp_path / "README.md").write_text("card")
    HubRepository("lab/model", public=True).upload(tmp_path)
    assert Hub.created["visibility"] == "public" and Hub.files == ["README.md"]


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = HubRepository("lab/model", public=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SetupError, match=r"^--push-to-hub lab/model: was not created \([^\n]+\)$"):
        HubRepository("lab/model", public=False)
    repository._api.endpoint = constants.ENDPOINT
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(SetupError, match=rf"the upload failed; the model is in {tmp_path}, try again with: hf upload"):
        repository.upload(tmp_path)
