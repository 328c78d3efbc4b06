from collections.abc import Callable
from pathlib import Path

import yaml

from ral_system.config.commands import TrainConfig
from ral_system.export.card import card, shown_config
from ral_system.export.lineage import lineage
from tests.unit.export.exported import end_stage


def test_the_card_says_what_the_model_is_and_how_it_was_made(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    hub = tmp_path / "models--Qwen--Qwen2.5-VL-3B" / "snapshots" / "66285546d2b8ffff"
    share = ("algorithm.attention.target_gradient_share=0.2", "algorithm.attention.layers=[0]")
    config = make_config("experiment=smoke", "algorithm=attention_credit", *share, "seed=7")
    cold = end_stage(tmp_path / "cold", config, "sft", hub)
    end_stage(tmp_path / "run", config, "rl", cold)
    text = card(lineage(tmp_path / "run"), "lab/looker", adapters=False)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "Qwen/Qwen2.5-VL-3B",
        "tags": ["ral_system", "reinforcement-learning", "attention_credit"],
    }
    assert body.startswith("\n# looker\n")
    assert "It started from Qwen/Qwen2.5-VL-3B at 66285546d2b8." in body and "licence of Qwen/Qwen2.5-VL-3B" in body
    assert (
        'name = "lab/looker"' in body
        and """{"role": "system", "content": [{"type": "text", "text": "answer"}]}""" in body
    )
    assert "| cold start | 4 | 8 demonstrations a step, data=visual_search |" in body
    assert "| RL | 3 | attention_credit, 4 prompts × 4 responses a step in 2 updates" in body
    assert "credit on attention (20% of the gradient), data=visual_search |" in body
    assert "| before RL | 0.400 | 0.309 to 0.498 | 100 |\n| after RL | 0.700 | 0.604 to 0.781 | 100 |" in body
    assert "Seed 7, with greedy answers." in body
    assert body.endswith("ral_system 0.1.0, torch 2.13.0, commit 0123456789ab.\n")


def test_adapters_name_what_they_are_put_on(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    lora = "learner.lora={rank: 4, alpha: 8, targets: [q_proj], vision: false}"
    config = make_config("experiment=smoke", "stages=[rl]", "start_model=m", lora, "data.system_prompt=''")
    end_stage(tmp_path / "run", config, "rl", tmp_path / "some" / "folder")
    text = card(lineage(tmp_path / "run"), "adapters", adapters=True)
    assert text.startswith("---\nlibrary_name: peft\n") and "base_model" not in text
    assert "LoRA adapters of a vision-language model, trained with ral_system. It started from a local model." in text
    assert "which is not on the hub. Share it as well" in text and ", LoRA, data=" in text
    assert '"role": "system"' not in card(lineage(tmp_path / "run"), "whole", adapters=False)


def test_sizes_of_pictures_that_were_set_are_told(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    source = ("data=files", "+data/source@data.sources.mine=columns", "data.sources.mine.path=/home/somebody/rows.json")
    config = make_config(*source, "data.image.max_pixels=50176", "start_model=m", "stages=[rl]")
    end_stage(tmp_path / "run", config, "rl", tmp_path / "m")
    text = card(lineage(tmp_path / "run"), "m", adapters=False)
    assert "Pictures were resized to max_pixels=50176 in training" in text


def test_what_is_shown_of_the_settings_names_no_folder_of_this_machine(make_config: Callable[..., TrainConfig]) -> None:
    source = ("data=files", "+data/source@data.sources.mine=columns", "data.sources.mine.path=/home/somebody/rows.json")
    own = (
        "start_model=/home/somebody/model",
        "runs_dir=/home/somebody",
        "algorithm=distill",
        "teacher.path=runs/somebody/model",
    )
    config = make_config(*source, *own, "stages=[rl]", "data.system_prompt='/no_think ./answer'")
    shown = shown_config(config.model_dump(mode="json"))
    assert "somebody" not in yaml.safe_dump(shown) and "mine" not in yaml.safe_dump(shown["data"])
    assert shown["data"]["system_prompt"] == "/no_think ./answer"
    assert shown["algorithm"] == config.model_dump(mode="json")["algorithm"]
    assert not shown.keys() & {"logging", "cluster", "runs_dir", "name"}
    given = shown_config(make_config("model.tiny.tokenizer=/home/somebody/qwen").model_dump(mode="json"))
    assert "somebody" not in yaml.safe_dump(given) and given["model"]["tiny"]["layers"] > 0
