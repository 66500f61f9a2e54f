"""The one error tree. Users' mistakes are raised as these and caught once, in the command line's `main`."""


class FewsightError(Exception):
    """A mistake or a condition that the user can mend; its text says what, where, what was expected, what next."""


class RecipeError(FewsightError):
    """A recipe, or a value that overrides one, is not valid."""


class DataError(FewsightError):
    """A dataset, manifest or image cannot be used as it is."""


class RunError(FewsightError):
    """A run folder cannot be written, read or resumed, or the run itself cannot go on."""


class Interrupted(FewsightError):
    """Ctrl-C or SIGTERM arrived; what was reached is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
