"""A role behind a server on loopback that answers what a test tells it: requests, and how answers are used."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from ral_system.config.commands import SynthesizeConfig
from ral_system.errors import ConfigError, SetupError
from ral_system.media.store import MediaStore
from ral_system.synthesis.endpoint import EndpointGenerator
from ral_system.synthesis.rows import ROLES, MalformedError, Role, Row, UnansweredError
from ral_system.tasks.visual_search import VisualSearch

ROW = Row(VisualSearch(seed=0, grid=3, objects=9).record("train", 0))


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Server:
    """Answers with `script` in turn, its last entry for ever: (status, body) or (status, body, headers)."""

    def __init__(self) -> None:
        self.script: list[tuple[Any, ...]] = [(200, completion("a red 7"))]
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.delay_s = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.times.append(time.monotonic())
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body, *headers = server.script[min(len(server.requests), len(server.script)) - 1]
                time.sleep(server.delay_s)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                kind = "text/html" if isinstance(body, str) else "application/json"
                for name, value in ({"Content-Type": kind} | (headers[0] if headers else {})).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


Ask = Callable[..., list[str]]


@pytest.fixture
def ask(server: Server, make_config: Callable[..., SynthesizeConfig], media: MediaStore) -> Ask:
    """Ask the server once, or `times` at once, as one role; its generator is kept as `ask.generator`."""

    def asked(
        *overrides: str, role: Role = "describer", times: int = 1, check: bool = False, **texts: str
    ) -> list[str]:
        settings = make_config(
            *(f"synthesis.{r}.endpoint={server.address}" for r in ROLES),
            *(f"synthesis.{r}.model=m" for r in ROLES),
            "synthesis.retries=1",
            "synthesis.timeout_s=0.5",
            *(f"synthesis.{o}" for o in overrides),
            kind=SynthesizeConfig,
        ).synthesis

        async def all_of_them() -> list[str]:
            generator = EndpointGenerator(role, settings, media)
            asked.generator = generator  # type: ignore[attr-defined]
            try:
                if check:
                    await generator.check()
                return await asyncio.gather(*(generator.generate(ROW, texts) for _ in range(times)))  # type: ignore[arg-type]
            finally:
                await generator.close()

        return asyncio.run(all_of_them())

    return asked


def test_the_describer_is_sent_the_picture(server: Server, ask: Ask) -> None:
    assert ask("describer.instruction=tell me") == ["a red 7"]
    (request,) = server.requests
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 1024, 0.7)
    (message,) = request["messages"]
    picture, text = message["content"]
    assert text == {"type": "text", "text": "tell me"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.tobytes() == ROW.record.image.tobytes()
    assert (ask.generator.prompt_tokens, ask.generator.completion_tokens) == (7, 3)  # type: ignore[attr-defined]


def test_instructions_are_filled_in_once(server: Server, ask: Ask) -> None:
    server.script = [(200, completion(" <think> hm </think> \n"))]
    (found,) = ask(
        "reasoner.instruction='{description} | {question} | {reasoning}'", role="reasoner", describer="has {question}"
    )
    assert found == "<think> hm </think>"
    (part,) = server.requests[0]["messages"][0]["content"]
    assert part["text"] == f"has {{question}} | {ROW.record.question} | "


def test_the_key_comes_from_the_environment_and_nothing_else_does(
    server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://private.example")
    ask()
    assert not [value for value in server.headers[0].values() if "private" in value]
    assert server.headers[0]["authorization"] == "Bearer none"
    monkeypatch.setenv("MY_KEY", "sesame")
    ask("describer.api_key_env=MY_KEY")
    assert server.headers[1]["authorization"] == "Bearer sesame"
    with pytest.raises(
        ConfigError, match=r"synthesis.describer.api_key_env=NO_KEY: no such environment variable; export"
    ):
        ask("describer.api_key_env=NO_KEY")


@pytest.mark.parametrize("key", ["sesame\n", "ses\rame", "sesamé"])
def test_a_key_never_shows(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MY_KEY", key)
    if key.strip() == "sesame":
        server.script = [(400, {"error": {"message": "what is Bearer sesame ?"}})]
    with pytest.raises((ConfigError, MalformedError)) as caught:
        ask("describer.api_key_env=MY_KEY")
    assert "ses" not in str(caught.value).replace("synthesis", "")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, "<html>welcome</html>"), "no chat completion: <html>welcome"),
        ((200, {"error": "overloaded"}), "no chat completion"),
        ((200, completion("x") | {"choices": []}), "no chat completion"),
        ((200, completion(None)), "a completion without text"),
        ((200, completion("a red", "length")), "cut at synthesis.describer.max_tokens=1024: a red"),
        ((200, completion("x") | {"choices": {"a": 1}}), "no chat completion"),
        ((200, completion("x") | {"choices": 3}), "no chat completion"),
        ((200, completion("x") | {"choices": [None]}), "a completion without text"),
        ((400, {"error": {"message": "too long"}}), "refused with status 400: .*too long"),
        ((200, "{", {"Content-Type": "application/json"}), "no chat completion"),
    ],
)
def test_malformed_completions(server: Server, ask: Ask, answer: tuple[Any, ...], says: str) -> None:
    server.script = [answer]
    with pytest.raises(MalformedError, match=says):
        ask()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, ask: Ask, status: int) -> None:
    server.script = [(status, {"error": {"message": "busy"}}, {"Retry-After": "0.2"}), (200, completion("late"))]
    assert ask() == ["late"]
    assert len(server.requests) == 2
    assert server.times[1] - server.times[0] >= 0.2
    server.script = [(status, {"error": {"message": "busy"}}, {"Retry-After": "0.01"})]
    with pytest.raises(UnansweredError, match="busy"):
        ask()


def test_a_slow_server_is_asked_again_and_then_left(server: Server, ask: Ask) -> None:
    server.delay_s = 1.0
    began = time.monotonic()
    with pytest.raises(UnansweredError, match="timed out"):
        ask()
    assert len(server.requests) == 2
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"refuses the key; set synthesis.describer.api_key_env to"),
        (403, r"refuses the key"),
        (404, r"has no model 'm', or lacks its /v1"),
    ],
)
def test_what_no_other_row_would_change_is_the_configuration_s(
    server: Server, ask: Ask, status: int, says: str
) -> None:
    server.script = [(status, {"error": {"message": "no"}})]
    with pytest.raises(ConfigError, match=rf"synthesis.describer.endpoint={server.address} {says}"):
        ask()


def test_wrong_settings_are_found_before_any_row(server: Server, ask: Ask) -> None:
    assert ask(check=True) == ["a red 7"]
    assert [request["max_tokens"] for request in server.requests] == [1, 1024]
    for answer, error, says in (
        ((404, {"error": {"message": "no"}}), ConfigError, "has no model 'm'"),
        ((500, {"error": {"message": "no"}}, {"Retry-After": "0.01"}), SetupError, "does not answer"),
        (
            (400, {"error": {"message": "no chat"}}),
            ConfigError,
            "does not return a chat completion, even for one word: refused",
        ),
        ((200, "<html>welcome</html>"), ConfigError, "does not return a chat completion"),
    ):
        server.script = [answer]
        with pytest.raises(error, match=says):
            ask(check=True, times=0)
    for text in ("a", None):  # a token is an answer, and so is none, of a model that thinks first
        server.script = [(200, completion(text, "length"))]
        assert ask(check=True, times=0) == []


def test_odd_usage_is_not_counted(server: Server, ask: Ask) -> None:
    server.script = [(200, completion("a") | {"usage": {"prompt_tokens": "7", "completion_tokens": 3}})]
    assert ask() == ["a"]
    assert (ask.generator.prompt_tokens, ask.generator.completion_tokens) == (0, 3)  # type: ignore[attr-defined]


def test_an_answer_cut_short_is_no_server_that_is_not_there(server: Server, ask: Ask) -> None:
    server.script = [(200, completion("a"), {"Content-Length": "100000"})]
    with pytest.raises(UnansweredError):
        ask()


def test_no_server_is_one_line(server: Server, ask: Ask) -> None:
    server.close()
    with pytest.raises(
        SetupError, match=rf"synthesis.describer.endpoint={server.address} cannot be reached \(.+\); start"
    ):
        ask()


def test_requests_keep_their_pace(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(delay_s: float, *rest: Any) -> Any:
        waits.append(delay_s)
        return await sleep(0, *rest)

    monkeypatch.setattr("ral_system.synthesis.endpoint.asyncio.sleep", recorded)
    ask("describer.requests_per_minute=6", times=4)
    assert waits == pytest.approx([0, 10, 20, 30], abs=2)


def test_retries_keep_the_pace_too(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [(429, {"error": {"message": "busy"}}, {"Retry-After": "0.01"})] * 2 + [(200, completion("late"))]
    paced: list[float] = []
    monkeypatch.setattr("ral_system.synthesis.endpoint.EndpointGenerator._pace", recorder(paced))
    assert ask("retries=3", "describer.requests_per_minute=6") == ["late"]
    assert len(paced) == len(server.requests) == 3


def recorder(calls: list[float]) -> Callable[..., Any]:
    async def paced(self: object, request: object) -> None:
        calls.append(time.monotonic())

    return paced
