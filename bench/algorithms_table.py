"""`python -m bench.algorithms_table`: docs/algorithms.md, from the code's catalogue and the configuration's
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
# Algorithms

Written by `python -m bench.algorithms_table`; do not edit. Every choice can be combined with RAL's attention term, with
distillation, and with the other choices, unless the configuration refuses the combination with a one-line reason.

r = π / π_old is the ratio of the policy in training to the policy at the rollout's weights, recomputed by the learner.
μ are the probabilities that the rollout engine reported. A is the advantage. sg(x) is x as a constant. All
denominators are global counts.
"""
_ANCHOR = """
DPPO compares with the rollout's own probabilities. `algorithm.policy_loss.anchor=old` compares with those that the
learner recomputed; runs with it collapse in the paper, so it prints a warning.
"""
_SAMPLING = """
## Sampling
`algorithm.sampling_rounds` > 1 replaces groups with equal rewards by groups of the next prompts, in at most that many
rounds (dynamic sampling, DAPO); `sampling/groups_dropped` counts them. `algorithm.overlong.handling=mask` excludes
truncated responses from the policy gradient; `penalty` subtracts up to 1 from the reward of responses within
`algorithm.overlong.buffer` tokens of the limit. `rollout.stop_at_answer` ends a response at `</answer>`. Every response
has its own seed, which is logged with it.

## Updates: `algorithm.updates_per_step`, `algorithm.passes_per_step`
A step makes passes_per_step passes over its rollout batch, each of the same updates_per_step optimiser updates on equal
parts of it. π_old and the old attention rows stay those of the rollout's weights, so only the first update of the first
pass is on policy. RAL's attention term has no gradient there: with one update and one pass it would train nothing,
and the combination is refused.

Group deviations are those of the population. Libraries that divide by G - 1 give advantages smaller by
√((G - 1) / G), 0.94 for G = 8.
"""
_STALE = """
## Stale responses and changing weights: `algorithm.max_staleness`, `rollout.on_new_weights`
The default, max_staleness=0, alternates between generating and training. With larger values, π_old of a token and its
old attention row are computed at the weights that generated the token: the learner keeps the last max_staleness + 1
versions. A batch is as stale as its oldest token, and training on a batch that is staler than allowed is an error.
Nothing is generated ahead of checkpoints and evaluations, so the batches after them are fresher.
"""
_MIXED = """
With `continue`, the engine computes all keys and values of the response again, so each token comes from exactly
one version, given everything before it. The response is scored at each of its versions, and every token takes its
log-prob and its attention row from the version that generated it; a sequence's ratio is computed from the ratios of its
tokens. The visual reward is a single value per response, computed at the last version. With `continue` and `discard`,
timing decides which version generates a token, so a run cannot be repeated exactly.
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(table(), encoding="utf-8")
    print(f"{TARGET} is written")


def table() -> str:
    """Return the whole file."""
    config = _composed()
    algorithm = config.algorithm
    low, high = algorithm.correction.low, algorithm.correction.high
    return "\n".join(
        [
            _HEAD,
            "## Policy loss: `algorithm/policy_loss=NAME`",
            "Settings are fields of `algorithm.policy_loss`; a choice also sets its reduction and correction.\n",
            *_rows("loss of a token", catalogue.POLICY_LOSSES, _default_loss(), settings=True),
            _ANCHOR,
            "## Advantage: `algorithm.advantage`",
            *_rows("advantage", catalogue.ADVANTAGES, algorithm.advantage),
            "\n## Reduction: `algorithm.reduction`",
            *_rows("over the update", catalogue.REDUCTIONS, algorithm.reduction),
            "\n## Correction for the rollout engine: `algorithm.correction.kind`",
            f"Bounds are `algorithm.correction.low` ({low}) and `algorithm.correction.high` ({high}).\n",
            *_rows("weight of a token", catalogue.CORRECTIONS, algorithm.correction.kind),
            "\n## KL to the reference: `algorithm.kl.estimator`, weight `algorithm.kl.coefficient`",
            f"The default weight is {algorithm.kl.coefficient}. `algorithm.kl.place=loss`, the default, adds the KL to",
            "the loss; `reward` subtracts each response's sum from its reward.\n",
            *_rows("of a token", catalogue.KL_ESTIMATORS, algorithm.kl.estimator),
            "\nAn entropy bonus is `algorithm.entropy_coefficient`. KL and entropy are always token means.",
            _SAMPLING,
            _STALE,
            *_rows("when new weights arrive", catalogue.ON_NEW_WEIGHTS, config.rollout.on_new_weights),
            _MIXED,
        ]
    )


def _composed(*overrides: str) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("ral_system.conf", version_base=None):
        return compose("config", list(overrides))


def _default_loss() -> str:
    return next(choice.name for choice in catalogue.POLICY_LOSSES if composed(choice.name) == composed())


def composed(preset: str | None = None) -> dict[str, Any]:
    """Return the settings of a policy loss, by default the default one."""
    from omegaconf import OmegaConf

    chosen = _composed(*([f"algorithm/policy_loss={preset}"] if preset else [])).algorithm
    found: Any = OmegaConf.to_container(chosen.policy_loss)
    return found | {"reduction": chosen.reduction, "correction.kind": chosen.correction.kind}


def _settings(choice: Choice) -> str:
    found = {name: value for name, value in composed(choice.name).items() if name != "name"}
    return ", ".join(f"{name}={'null' if value is None else str(value).lower()}" for name, value in found.items())


def _rows(formula: str, choices: Sequence[Choice], default: str, *, settings: bool = False) -> list[str]:
    header = ["name", "paper", formula, "when", *(["settings"] if settings else [])]
    lines = [_row(header), _row(["---"] * len(header))]
    for c in choices:
        name = f"`{c.name}` (default)" if c.name == default else f"`{c.name}`"
        lines.append(_row([name, c.paper, c.formula, c.when, *([_settings(c)] if settings else [])]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
