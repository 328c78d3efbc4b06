"""Tags of the response template as text, where a tokenizer has tokens of its own for them."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from ral_system.config.choices import TAGS


def with_tags_as_text(core: Tokenizer) -> Tokenizer:
    """Return a tokenizer that reads tags like other text; all other ids are those of `core`."""
    written = json.loads(core.to_str())
    own = [token for token in written["added_tokens"] if token["content"] in TAGS]
    if not own:
        return core
    for token in own:  # without its entry, those after it would get other ids
        token["content"] = f"\ue000{token['id']}"
    return Tokenizer.from_str(json.dumps(written))
