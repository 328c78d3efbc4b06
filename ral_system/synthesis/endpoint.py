"""A role played by a model behind an OpenAI-compatible server. The only file that imports `openai`."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from typing import Any

import openai

from ral_system.config.synthesis import PLACEHOLDER, SynthesisConfig
from ral_system.errors import ConfigError, SetupError
from ral_system.media.store import MediaStore
from ral_system.synthesis.rows import MalformedError, Role, Row, UnansweredError

_NO_KEY = "none"


class EndpointGenerator:
    """Asks for chat completions. The client itself retries what is worth it, waiting longer each time or as told."""

    deterministic = False

    def __init__(self, role: Role, config: SynthesisConfig, media: MediaStore) -> None:
        self._role, self._media = role, media
        self._settings = getattr(config, role)
        self._where = f"synthesis.{role}.endpoint={self._settings.endpoint}"
        self._key = self._read_key()
        self._client = openai.AsyncOpenAI(
            base_url=self._settings.endpoint,
            api_key=self._key,
            organization="",  # otherwise taken from the environment and sent to any endpoint
            project="",
            max_retries=config.retries,
            timeout=config.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._pace]}),  # retries included
        )
        self._next_at = 0.0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def generate(self, row: Row, texts: Mapping[Role, str]) -> str:
        """Request one completion.

        Raises MalformedError for one that is cut, empty or none at all, UnansweredError when the
        server was too slow or failed on every try, SetupError when it is not there, ConfigError when it refuses the key
        or does not know the model.
        """
        return self._text(await self._complete(self._content(row, texts), self._settings.max_tokens))

    async def check(self) -> None:
        """Ask for a single token, so a wrong setup is found before there is work to lose."""
        try:
            self._choice(await self._complete([{"type": "text", "text": "hello"}], 1))
        except UnansweredError as error:
            raise SetupError(
                f"{self._where} does not answer ({error}); check the server, or raise synthesis.timeout_s or "
                "synthesis.retries"
            ) from error
        except MalformedError as error:
            raise ConfigError(f"{self._where} does not return a chat completion, even for one word: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _complete(self, content: list[Any], max_tokens: int) -> Any:
        try:
            return await self._client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "user", "content": content}],
                temperature=self._settings.temperature,
                max_tokens=max_tokens,
            )
        except openai.APIConnectionError as error:  # timeouts are some
            cause = error.__cause__ or error
            if not type(cause).__name__.startswith("Connect"):
                late = isinstance(error, openai.APITimeoutError)
                raise UnansweredError("timed out" if late else self._said(cause) or type(cause).__name__) from error
            raise SetupError(
                f"{self._where} cannot be reached ({self._said(cause)}); start the server or correct the address, then "
                "run the same command again: nothing that came back is lost"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(
                f"{self._where} refuses the key; set synthesis.{self._role}.api_key_env to the name of the environment "
                "variable that holds it"
            ) from error
        except openai.NotFoundError as error:
            raise ConfigError(
                f"{self._where} has no model {self._settings.model!r}, or lacks its /v1: {self._said(error)}"
            ) from error
        except (openai.RateLimitError, openai.InternalServerError, openai.ConflictError) as error:
            raise UnansweredError(self._said(error)) from error
        except openai.APIStatusError as error:
            raise MalformedError(f"refused with status {error.status_code}", self._said(error)) from error
        except (openai.APIResponseValidationError, ValueError) as error:
            raise MalformedError("no chat completion", self._said(error)) from error

    def _read_key(self) -> str:
        name = self._settings.api_key_env
        if name is None:
            return _NO_KEY
        if not (key := os.environ.get(name, "").strip()):
            raise ConfigError(f"synthesis.{self._role}.api_key_env={name}: no such environment variable; export it")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"synthesis.{self._role}.api_key_env={name}: the key has characters that no key has; export it again"
            )
        return key

    def _content(self, row: Row, texts: Mapping[Role, str]) -> list[Any]:
        texts_by_name = {
            "question": row.record.question,
            "description": texts.get("describer", ""),
            "reasoning": texts.get("reasoner", ""),
        }
        text = PLACEHOLDER.sub(lambda found: texts_by_name[found[1]], self._settings.instruction)
        if not self._settings.picture:
            return [{"type": "text", "text": text}]
        png = self._media.path(self._media.put(row.record.image)).read_bytes()
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]

    def _choice(self, answer: Any) -> Any:
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise MalformedError("no chat completion", self._said(answer))
        return choices[0]

    def _text(self, answer: Any) -> str:
        choice, usage = self._choice(answer), getattr(answer, "usage", None)
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(count := getattr(usage, name, None), int):
                setattr(self, name, getattr(self, name) + count)
        text = getattr(getattr(choice, "message", None), "content", None)
        if not isinstance(text, str):
            raise MalformedError("a completion without text")
        if getattr(choice, "finish_reason", None) == "length":
            raise MalformedError(f"cut at synthesis.{self._role}.max_tokens={self._settings.max_tokens}", text)
        return text.strip()

    async def _pace(self, _: object) -> None:
        rate = self._settings.requests_per_minute
        if rate is None:
            return
        now = asyncio.get_running_loop().time()
        at, self._next_at = max(now, self._next_at), max(now, self._next_at) + 60 / rate
        await asyncio.sleep(at - now)

    def _said(self, what: object) -> str:
        """Return the error on one line, without the key if it occurs there."""
        text = " ".join(str(what).split())
        return (text if self._key == _NO_KEY else text.replace(self._key, "…"))[:200]
