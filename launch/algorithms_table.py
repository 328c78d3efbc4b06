"""`python -m launch.algorithms_table`: docs/algorithms.md, from the code's catalogue and the configuration's
defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ral_system.algorithms import catalogue
from ral_system.algorithms.catalogue import Choice

TARGET = Path(__file__).parents[1] / "docs" / "algorithms.md"
_HEAD = """\
# The token side

Written by `python -m launch.algorithms_table`; do not edit. Every choice composes with RAL's attention term, with
distillation, and with the others, unless the configuration says in one line why not.
r = π / π_old: the policy in training against the same weights as the rollout's, recomputed by the learner. μ: the
rollout's probabilities as its engine reported them. A: the advantage. sg: a constant. All denominators are global
counts.
"""
_STALE = """
## Stale responses, and those of several weights: `algorithm.max_staleness`, `rollout.on_new_weights`
π_old of a token, and the old attention row that belongs to it, are those at the weights that made the token: the
learner keeps the last max_staleness + 1 versions. A batch is as stale as its oldest token; one that is staler than
allowed is an error where it would be trained on.
"""
_MIXED = """
An engine that continues computes all keys and values of the response again, so that each token comes from one version
alone, given everything before it. The response is scored once at each of its versions, and every token takes its
log-prob and its attention row from the version that made it; a sequence's ratio is the product of its tokens'. The
visual reward, one figure for all tokens, is that at the last version. With `continue` and `discard` it depends on the
clock which tokens are made with what, so a run does not repeat.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(table(), encoding="utf-8")
    print(f"{TARGET} is written")


def table() -> str:
    """The whole file."""
    return "\n".join(
        [
            _HEAD,
            "## Policy loss: `algorithm/policy_loss=NAME`",
            "Settings are fields of `algorithm.policy_loss`; a choice sets its reduction and correction, too.\n",
            *_rows(("name", "paper", "loss of a token", "when", "settings"), catalogue.POLICY_LOSSES, _settings),
            "\n## Advantage: `algorithm.advantage`",
            *_rows(("name", "paper", "advantage", "when"), catalogue.ADVANTAGES),
            "\n## Reduction: `algorithm.reduction`",
            *_rows(("name", "paper", "over the update", "when"), catalogue.REDUCTIONS),
            "\n## Correction for the rollout engine: `algorithm.correction.kind`",
            *_rows(("name", "paper", "weight of a token", "when"), catalogue.CORRECTIONS),
            "\n## KL to the reference: `algorithm.kl.estimator`, weight `algorithm.kl.coefficient`",
            "`algorithm.kl.place=loss` adds it to the loss, `reward` takes each response's sum off its reward.\n",
            *_rows(("name", "paper", "of a token", "when"), catalogue.KL_ESTIMATORS),
            "\nAn entropy bonus is `algorithm.entropy_coefficient`. KL and entropy are always token means.",
            _STALE,
            *_rows(("name", "paper", "new weights under way", "when"), catalogue.ON_NEW_WEIGHTS),
            _MIXED,
        ]
    )


def composed(preset: str) -> dict[str, Any]:
    """What a policy loss sets."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("conf", version_base=None):
        chosen = compose("config", [f"algorithm/policy_loss={preset}"]).algorithm
    found: Any = OmegaConf.to_container(chosen.policy_loss)
    return found | {"reduction": chosen.reduction, "correction.kind": chosen.correction.kind}


def _settings(choice: Choice) -> str:
    found = {name: value for name, value in composed(choice.name).items() if name != "name"}
    return ", ".join(f"{name}={'null' if value is None else str(value).lower()}" for name, value in found.items())


def _rows(header: Sequence[str], choices: Sequence[Choice], more: Any = None) -> list[str]:
    lines = [_row(header), _row(["---"] * len(header))]
    for c in choices:
        lines.append(_row([f"`{c.name}`", c.paper, c.formula, c.when, *([more(c)] if more else [])]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
