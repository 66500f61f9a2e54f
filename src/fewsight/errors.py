"""The error tree. Users' mistakes are raised as these classes and caught once, in the command line's `main`."""


class FewsightError(Exception):
    """A problem that the user can fix; its text says what, where, what was expected and what to do next."""


class RecipeError(FewsightError):
    """A recipe, or a value that overrides one, is not valid."""


class DataError(FewsightError):
    """A dataset, manifest or image cannot be used as it is."""


class RunError(FewsightError):
    """A run folder cannot be written, read or resumed, or the run itself cannot go on."""


class WeightsError(RunError):
    """A run's weights are damaged, or give scores that are not finite."""


class WriteError(RunError):
    """A file cannot be written: a full disk, a folder without permission. Nothing that existed before is lost."""


class Interrupted(FewsightError):
    """Ctrl-C or SIGTERM arrived; the training's progress is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
