"""What can go wrong while an artifact is converted, by what the user can do about it."""

from onnx_serve.errors import ServeError

__all__ = ["ConversionError", "ConversionRefused", "MissingExtra"]


class ConversionError(ServeError):
    """The artifact, the sample or an option is not what was expected; nothing has been written."""


class ConversionRefused(ConversionError):
    """No model can be made that answers as the original does; nothing has been written."""


class MissingExtra(ConversionError):
    """A library that the artifact needs is not installed.

    Args:
        extra: The optional dependency of onnx-serve that brings it, such as ``convert-sklearn``.
        module: The module that is missing.
    """

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f'{module} is not installed: pip install "onnx-serve[{extra},cpu]"')
