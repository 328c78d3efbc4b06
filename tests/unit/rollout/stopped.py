"""Responses that end at `</answer>` against the same responses that went on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ral_system.types import Completion, FinishReason


def check_stopped(plain: Mapping[str, Completion], stopped: Mapping[str, Completion], tokenizer: Any) -> None:
    """Each is the other up to the first end of an answer, if there is one."""
    assert plain.keys() == stopped.keys()
    ended = 0
    for id, whole in plain.items():
        part = stopped[id]
        texts = [tokenizer.decode(whole.token_ids[: n + 1]) for n in range(len(whole.token_ids))]
        length = next((n + 1 for n, text in enumerate(texts) if "</answer>" in text), len(texts))
        assert part.token_ids == whole.token_ids[:length]
        assert part.log_probs == pytest.approx(whole.log_probs[:length], abs=1e-4)
        if "</answer>" in texts[length - 1]:
            ended += 1
            assert part.finish_reason is FinishReason.STOP and part.text.endswith("</answer>")
        else:
            assert part.finish_reason is whole.finish_reason
    assert 0 < ended < len(plain)
