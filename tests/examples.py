"""The packages in examples/, as pip would install them."""

import tomllib
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def installed(name: str, site: Path) -> str:
    """Register the entry points of an example below `site`; the PYTHONPATH under which it counts as installed."""
    project = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, targets in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {target}" for key, target in targets.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return f"{EXAMPLES / name}:{site}"
