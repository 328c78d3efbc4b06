"""What is refused of tasks that need looking: overrides, then what the message must contain."""

from typing import Any

from tests.unit.config.whole_groups import ASKED_LOOKING, LOOKING

LOOKING_TASKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sizes of tasks that need looking": (
        {"data": ASKED_LOOKING, "sweep.axis": "visual_tokens", "sweep.values": [16]},
        ["sweep.axis=visual_tokens: data.name=looking varies in data.difficulty", "choose sweep=none"],
    ),
    "too few scenes": (
        {"data": LOOKING},
        ["would draw a question twice with the same weights from data.train_records=2"],
    ),
    "a family that is none": (
        {"data": LOOKING | {"families": ("chain", "maze")}},
        [
            "data.families=['chain', 'maze'], entry 'maze': no such choice; use 'search', 'detail'",
            "'compare' or 'needle'",
        ],
    ),
    "no family": ({"data": LOOKING | {"families": ()}}, ["data.families=()"]),
    "a sixth difficulty": (
        {"data": LOOKING | {"difficulty": (1, 6)}},
        ["data.difficulty=[1, 6], entry 6: out of range; set it to 5 or less"],
    ),
}
