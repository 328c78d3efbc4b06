"""Every error the system raises on purpose. All are picklable, so they cross processes unchanged.

A `RalError` is a condition a user can act on: entry points print it as one line and exit with its code.
Anything else that escapes is a bug and keeps its traceback.
"""

_MOST_LINES = 3

BUG = "this is a bug in ral_system: please report it"
"""The remedy of an error that a user can do nothing about."""


class RalError(Exception):
    """Base class. Each argument is a problem: a line that names the field or sample, the value and the remedy."""

    exit_code = 1

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))

    @property
    def lines(self) -> tuple[str, ...]:
        """The first problems, a line each, and how many others there are."""
        found = [" ".join(str(problem).split()) for problem in self.args]
        others = len(found) - _MOST_LINES
        return (*found[:_MOST_LINES], *([f"and {others} more; correct these first"] if others > 0 else ()))


class ConfigError(RalError):
    """The configuration is wrong: unknown key, wrong type, illegal or inert combination."""

    exit_code = 2


class SetupError(RalError):
    """The machine cannot run what was asked: missing folder, package, cores, or a port in use."""

    exit_code = 2


class DataError(RalError):
    """A record or a media file cannot be used."""

    exit_code = 2


class GateError(RalError):
    """A check that runs on every step failed; continuing would train on corrupt data."""

    counter = "other_failures"
    """Name under which the summary counts the failure."""


class PromptIdError(GateError):
    """An engine saw prompt tokens that differ from the learner's."""

    counter = "prompt_id_mismatches"


class MediaTokenError(GateError):
    """A completion holds a token that stands for media in a prompt."""

    counter = "media_tokens_sampled"


class LogProbError(GateError):
    """Rollout and learner give a sampled token different probabilities."""

    counter = "log_prob_failures"


class WeightSyncError(GateError):
    """An engine did not load exactly the weights that the learner published."""

    counter = "weight_checksum_failures"


class WeightTransferError(RalError):
    """Weights did not reach an engine in time; they can be sent again."""


GATE_COUNTERS = tuple(e.counter for e in (PromptIdError, MediaTokenError, LogProbError, WeightSyncError, GateError))


class AlarmError(RalError):
    """An alarm rang, and `alarms.action=stop` asks to end the run; its checkpoint can be continued."""


class CheckpointError(RalError):
    """A checkpoint is incomplete, damaged or belongs to another run."""


class ActorError(RalError):
    """A process of the run died, or did not answer within its deadline."""


class CollectiveError(ActorError):
    """A learner rank waited for the other ranks longer than a collective may take."""
