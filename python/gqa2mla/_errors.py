"""The exceptions, one for each exit code of the command line."""


class Error(Exception):
    """A command failed. The message names the file and the node."""

    exit_code = 1
    """The exit code of the command."""

    def __init__(self, message, report=None):
        super().__init__(message)
        self.message = message
        self.report = report
        """The result that the command prints with ``--json``, if it fails with one; otherwise None."""


class UsageError(Error, ValueError):
    """The options are wrong."""

    exit_code = 2


class NothingToRewrite(Error):
    """There is nothing to rewrite, or only part of the attentions is recognised (``allow_partial=True`` takes part)."""

    exit_code = 3


class ValidationFailed(Error):
    """The models differ by more than the tolerance. The output of ``rewrite`` is kept in the folder ``OUT.rejected``."""

    exit_code = 4


def error_of(exit_code, message, report):
    """The exception for an exit code."""
    kinds = {kind.exit_code: kind for kind in (Error, UsageError, NothingToRewrite, ValidationFailed)}
    kind = kinds.get(exit_code, Error)
    return kind(message or kind.__doc__.split(".")[0], report)
