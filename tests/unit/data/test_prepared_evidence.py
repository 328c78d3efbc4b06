"""Boxes of a file on their way into prompts."""

from collections.abc import Callable
from pathlib import Path

from ral_system.config.commands import TrainConfig
from ral_system.types import Region
from tests.unit.data.test_preparation import Bench, left_out, rows


def test_evidence_goes_with_its_row(tmp_path: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]) -> None:
    """Pixels are those of the file, whatever size the model sees."""
    bench = Bench(tmp_path, tiny_model, make_config)
    given = rows(bench.folder, 12)
    for i, row in enumerate(given):
        row["boxes"] = [{"box": [28, 0, 84, 42], "unit": "pixel"}, {"box": [0, 0, 0.25, 1], "unit": "fraction"}]
        row["boxes"] = row["boxes"][: i % 3]
    given[11]["boxes"] = [{"box": [0, 0, 85, 84], "unit": "pixel"}]
    bench.write(given)
    prepared = bench.prepare(
        "data.sources.main.columns.evidence=boxes", "data.image.min_pixels=20000", "data.held_out=0.3"
    )
    prompts = bench.prompts(prepared)
    held_out = prompts.held_out(100)
    every = [*held_out, *(prompts.question("train", i) for i in range(11 - len(held_out)))]
    regions = (Region(1 / 3, 0, 1, 0.5), Region(0, 0, 0.25, 1))
    assert {p.id: p.evidence for p in every} == {f"main/{i}": regions[: i % 3] for i in range(11)}
    assert all(p.media[0].width_px > 84 for p in every)
    ((cause, reason),) = left_out(prepared).values()
    assert cause == "broken" and reason.startswith("boxes[0]: box=[0.0, 0.0, 85.0, 84.0]: 85 is outside of the image's")
