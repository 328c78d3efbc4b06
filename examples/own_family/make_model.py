"""Write a tiny random model of the toy's family: python make_model.py FOLDER"""

import sys
import tempfile
from pathlib import Path

from own_family import OwnVlConfig, OwnVlForConditionalGeneration
from transformers import AutoProcessor

from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words


def main(folder: Path) -> None:
    """Build the tiny Qwen2.5-VL and save it as a model of the toy's family."""
    with tempfile.TemporaryDirectory() as scratch:
        build_tiny_model(Path(scratch), words(), hidden=64, layers=2, vision_layers=1, seed=0)
        config = OwnVlConfig(**OwnVlConfig.from_pretrained(scratch).to_dict() | {"model_type": "own_vl"})
        model = OwnVlForConditionalGeneration.from_pretrained(scratch, config=config)
        model.save_pretrained(folder)
        AutoProcessor.from_pretrained(scratch).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
