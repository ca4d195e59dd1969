"""The exceptions that are fastopt's own."""


class DivergenceError(ArithmeticError):
    """The loss or the parameters stopped being finite; the network holds the last epoch that was."""


class ModelFormatError(ValueError):
    """A file is not a model or checkpoint that this version can read."""
