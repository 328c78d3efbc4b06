"""How rows.jsonl and its pictures were made: twelve boards of coloured shapes, with a question about each."""

import json
from pathlib import Path

from ral_system.tasks.visual_search import VisualSearch

HERE = Path(__file__).parent


def main() -> None:
    """Write the pictures and the rows."""
    boards, rows = VisualSearch(seed=5, grid=2, objects=3), []
    for i in range(12):
        record = boards.record("train", i)
        record.image.save(HERE / "pictures" / f"{i}.png")
        rows.append(
            {
                "question": record.question,
                "answer": record.answer,
                "kind": record.kind,
                "picture": f"pictures/{i}.png",
            }
        )
    (HERE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
