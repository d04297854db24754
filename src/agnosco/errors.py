"""What a user can do wrong, in two lines: what happened, and what to do about it."""


class AgnoscoError(Exception):
    """A mistake the user can mend; the command line prints it as ``Error:`` and ``Hint:``.

    Args:
        message: What is wrong, naming what was received.
        hint: The next thing to try.
        exit_code: What the command line exits with.

    Example:
        >>> from agnosco import AgnoscoError
        >>> raise AgnoscoError("no class 'goldfsh'", "did you mean 'goldfish'?")
        Traceback (most recent call last):
        agnosco.errors.AgnoscoError: no class 'goldfsh' (did you mean 'goldfish'?)
    """

    def __init__(self, message: str, hint: str, *, exit_code: int = 2) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"


class AgnoscoWarning(UserWarning):
    """Something to know that does not stop the work.

    Example:
        >>> import warnings
        >>> from agnosco import AgnoscoWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", AgnoscoWarning)  # or "error", to stop at the first
    """
