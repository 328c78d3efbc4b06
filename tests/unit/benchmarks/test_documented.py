"""The table of benchmarks, and --help, say what the registry says."""

import re
from pathlib import Path

from ral_system.launch.evaluate import ABOUT
from ral_system.registry import BENCHMARKS

DATA = Path(__file__).parents[3] / "docs" / "data.md"


def test_every_benchmark_is_in_the_table() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in DATA.read_text().splitlines() if line[:3] == "| `"
    ]
    table = {
        name.strip("`"): (about, files.replace("`", "")) for name, about, files in (r for r in rows if len(r) == 3)
    }
    known = {name: BENCHMARKS.get(name) for name in BENCHMARKS.names}
    assert {name: table[name] for name in known} == {name: (b.ABOUT, b.FILES) for name, b in known.items()}


def test_help_names_every_benchmark() -> None:
    listed = re.search(r"evaluation\.benchmark\.name is one of ([\w,\s]+?)\.\n", ABOUT)
    assert listed is not None and re.findall(r"\w+", listed[1]) == list(BENCHMARKS.names)
