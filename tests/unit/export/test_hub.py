import pytest

from ral_system.errors import ConfigError, SetupError
from ral_system.export import hub
from ral_system.export.hub import HubRepository


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
