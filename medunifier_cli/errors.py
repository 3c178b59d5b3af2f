"""What may go wrong on the user's side. `cli.py` prints these as one line and leaves with `exit_code`."""


class MuError(Exception):
    """A user's mistake or bad data: one line that says what is wrong, where, and what to do."""

    exit_code = 1


class RecipeError(MuError):
    """One or more problems of a recipe, each on its own line as `file:line: what`."""


class DataError(MuError):
    """Raw data, shards or a manifest that cannot be used as asked."""


class CheckpointError(MuError):
    """A run or checkpoint that is missing, damaged or of another shape."""


class MissingWeightsError(MuError):
    """Weights that must be fetched before the run, since nothing here touches the network."""


class Stopped(MuError):
    """A signal asked the run to stop; its checkpoint is saved, and the same command goes on from it."""

    exit_code = 75
