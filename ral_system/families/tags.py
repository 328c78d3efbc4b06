"""Tags of the response template as text, where a tokenizer has tokens of its own for them."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from ral_system.config.choices import TAGS

_ADDED = '"added_tokens":'


def with_tags_as_text(core: Tokenizer) -> Tokenizer:
    """Return a tokenizer that reads tags like other text; all other ids are those of `core`."""
    written = core.to_str()
    start = written.index(_ADDED) + len(_ADDED)
    added, end = json.JSONDecoder().raw_decode(written, start)  # the vocabulary after it is megabytes
    own = [token for token in added if token["content"] in TAGS]
    if not own:
        return core
    for token in own:  # without its entry, those after it would get other ids
        token["content"] = f"\ue000{token['id']}"
    return Tokenizer.from_str(f"{written[:start]}{json.dumps(added)}{written[end:]}")
