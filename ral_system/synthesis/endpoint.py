"""A role played by a model behind an OpenAI-compatible server. The only file that imports `openai`."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from typing import Any

import openai

from ral_system.config.schema import PLACEHOLDER, SynthesisConfig
from ral_system.data.media import MediaStore
from ral_system.errors import ConfigError, SetupError
from ral_system.synthesis.rows import MalformedError, Role, Row, UnansweredError

_RETRIED = (
    openai.APITimeoutError,
    openai.RateLimitError,
    openai.InternalServerError,
    openai.ConflictError,
)
"""What the client has tried again before it raises it."""


class EndpointGenerator:
    """Asks for chat completions. The client itself retries what is worth it, waiting longer each time or as told."""

    deterministic = False

    def __init__(self, role: Role, config: SynthesisConfig, media: MediaStore) -> None:
        self._role, self._media = role, media
        self._settings, self._timeout_s = getattr(config, role), config.timeout_s
        self._client = openai.AsyncOpenAI(
            base_url=self._settings.endpoint,
            api_key=self._key(),
            organization="",  # otherwise taken from the environment, and sent to whoever the endpoint is
            project="",
            max_retries=config.retries,
            timeout=config.timeout_s,
        )
        self._next_at = 0.0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def generate(self, row: Row, texts: Mapping[Role, str]) -> str:
        """One completion. Raises MalformedError for one that is cut, empty or none at all, UnansweredError when the
        server was too slow or failed on every try, SetupError when it is not there, ConfigError when it refuses the key
        or does not know the model.
        """
        return self._text(await self._complete(self._content(row, texts), self._settings.max_tokens))

    async def check(self) -> None:
        """Ask for a single token, so that a wrong address, key or model is found before there is work to lose."""
        try:
            await self._complete([{"type": "text", "text": "hello"}], 1)
        except UnansweredError as error:
            raise SetupError(
                f"synthesis.{self._role}.endpoint={self._settings.endpoint} does not answer ({error}); see to the "
                "server, or raise synthesis.timeout_s or synthesis.retries"
            ) from error
        except MalformedError:
            pass  # it answers; what it makes of a real request is seen there

    async def _complete(self, content: list[Any], max_tokens: int) -> Any:
        endpoint = f"synthesis.{self._role}.endpoint={self._settings.endpoint}"
        await self._pace()
        try:
            return await self._client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "user", "content": content}],
                temperature=self._settings.temperature,
                max_tokens=max_tokens,
            )
        except _RETRIED as error:
            raise UnansweredError(_one_line(error)) from error
        except openai.APIConnectionError as error:
            raise SetupError(
                f"{endpoint} cannot be reached ({_one_line(error.__cause__ or error)}); start the server or correct "
                "the address, then run the same command again: nothing that came back is lost"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(
                f"{endpoint} refuses the key; set synthesis.{self._role}.api_key_env to the name of the environment "
                "variable that holds it"
            ) from error
        except openai.NotFoundError as error:
            raise ConfigError(
                f"{endpoint} has no model {self._settings.model!r}, or the address lacks its /v1 ({_one_line(error)})"
            ) from error
        except openai.APIStatusError as error:
            raise MalformedError(f"refused with status {error.status_code}: {_one_line(error)}") from error
        except (openai.APIResponseValidationError, ValueError) as error:
            raise MalformedError(f"no chat completion: {_one_line(error)}") from error

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _key(self) -> str:
        name = self._settings.api_key_env
        if name is None:
            return "none"
        if not (key := os.environ.get(name)):
            raise ConfigError(f"synthesis.{self._role}.api_key_env={name}: no such environment variable; export it")
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

    def _text(self, answer: Any) -> str:
        choices = getattr(answer, "choices", None)
        if not choices:
            raise MalformedError(f"no chat completion: {str(answer)[:80]!r}")
        usage = getattr(answer, "usage", None)
        self.prompt_tokens += getattr(usage, "prompt_tokens", None) or 0
        self.completion_tokens += getattr(usage, "completion_tokens", None) or 0
        text = getattr(getattr(choices[0], "message", None), "content", None)
        if not isinstance(text, str):
            raise MalformedError("a completion without text")
        if choices[0].finish_reason == "length":
            raise MalformedError(f"cut at synthesis.{self._role}.max_tokens={self._settings.max_tokens}")
        return text.strip()

    async def _pace(self) -> None:
        rate = self._settings.requests_per_minute
        if rate is None:
            return
        now = asyncio.get_running_loop().time()
        at, self._next_at = max(now, self._next_at), max(now, self._next_at) + 60 / rate
        await asyncio.sleep(at - now)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
