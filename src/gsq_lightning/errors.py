"""The exceptions of this library."""


class InputError(ValueError):
    """Something given by the user cannot work.

    The message is one paragraph: what was given, what is allowed, what to do. The command line prints it
    without a traceback and exits with code 2; from Python it is an ordinary `ValueError`.
    """


class TrainingDiverged(RuntimeError):
    """Training produced non-finite gradients too many times in a row. The weights are those of the last good step."""


class ModelNotFinite(RuntimeError):
    """A validation found reconstructions that are NaN or infinite, so that there is no metric to report."""
