r"""Everything that can go wrong, by whose fault it is. No HTTP here: ``app.STATUS`` maps these to statuses.

Where each error arises on a request's way::

    bytes --decode--> tensors --conform--> feed --run--> outputs --encode--> bytes
            |                   |                 |                  |
            DecodeError         MismatchError     InferenceError     EncodeError
                                                  InputRefused
                                                  OutOfMemory

The tree::

    ServeError
    +-- SettingsError            the operator's: a configuration key or value
    +-- CalibrationError         the operator's: a file of measurements that is none
    +-- ModelError               the operator's: no model, or one that cannot be served
    +-- RequestError             the caller's, who can fix it
    |   +-- DecodeError          the body is not what its content type says
    |   +-- MismatchError        decoded, but not what the model takes
    |   +-- InputRefused         it conforms, but an operator of the model cannot take its values
    |   +-- ModelNotFound        no model, or several and the request chooses none
    |   |   +-- UnknownModel     no model of the name or version that the request chooses
    |   +-- InvalidName          what cannot name a model, or a place of one
    |   +-- AlreadyLoaded        a model to load, whose name is taken
    |   +-- UnservableModel      a model to load, that cannot be served
    |   +-- UnsupportedMediaType no codec decodes that content type
    |   +-- NotAcceptable        no codec encodes what Accept asks for
    |   +-- EncodeError          the outputs have no form in the format that Accept asks for
    |   +-- PayloadTooLarge      the body is over the limit, or cannot fit in memory
    +-- NotReady                 still loading
    +-- Overloaded               no permit in time: try again
    +-- DeadlineExceeded         the request took longer than the operator allows
    +-- Abandoned                whoever sent the request has gone
    +-- OutOfMemory              one row needs more memory than there is
    +-- InferenceError           onnxruntime failed on a feed that conforms
    +-- ContainerError           a batch job's: the container it calls is out of reach, or refuses

A message is one line that lands in the caller's job log: what was expected, what came, and where.
It never holds a path of the server or more than a short piece of the payload.
"""

__all__ = [
    "Abandoned",
    "AlreadyLoaded",
    "CalibrationError",
    "ContainerError",
    "DeadlineExceeded",
    "DecodeError",
    "EncodeError",
    "InferenceError",
    "InputRefused",
    "InvalidName",
    "MismatchError",
    "ModelError",
    "ModelNotFound",
    "NotAcceptable",
    "NotReady",
    "OutOfMemory",
    "Overloaded",
    "PayloadTooLarge",
    "RequestError",
    "ServeError",
    "SettingsError",
    "UnknownModel",
    "UnservableModel",
    "UnsupportedMediaType",
    "quote",
]

_QUOTE_LENGTH = 40


class ServeError(Exception):
    """Base of all errors raised on purpose; its text is written for the person who can act on it."""


class CalibrationError(ServeError):
    """A calibration file is not one: malformed, with a value out of bounds, or of another model or machine."""


class SettingsError(ServeError):
    """A setting is unknown or has a value that it cannot take."""


class ModelError(ServeError):
    """The model folder holds no servable model, or the model cannot be loaded."""


class RequestError(ServeError):
    """The caller's mistake, and the caller can mend it."""


class DecodeError(RequestError):
    """The body is not what its content type says.

    Args:
        problem: What was expected and what came, without the place.
        line: 1-based line of the body, for formats that have lines.
        column: 1-based column: a CSV cell's number, or a character's in other text formats.
        record: 1-based number of the record, for formats without lines.
    """

    def __init__(
        self, problem: str, *, line: int | None = None, column: int | None = None, record: int | None = None
    ) -> None:
        self.problem = problem
        self.line = line
        self.column = column
        self.record = record
        places = (("line", line), ("column", column), ("record", record))
        place = ", ".join(f"{name} {value}" for name, value in places if value is not None)
        super().__init__(f"{problem} ({place})" if place else problem)


class MismatchError(RequestError):
    """Decoded tensors are not what the model takes: a name, a type or a shape."""


class InputRefused(RequestError):
    """An operator of the model cannot take these values: an index beyond a table, shapes that do not meet."""


class ModelNotFound(RequestError):
    """No model has the name asked for, or there are several and the request chooses none."""


class UnknownModel(ModelNotFound):
    """No model has the name or version that the request names."""


class InvalidName(RequestError):
    """What stands where a model's name or place should cannot be one."""


class AlreadyLoaded(RequestError):
    """A model of that name is loaded."""


class UnservableModel(RequestError):
    """What a caller asked to load cannot be served."""


class UnsupportedMediaType(RequestError):
    """No codec decodes the request's content type."""


class NotAcceptable(RequestError):
    """No codec encodes any media type of the request's Accept header."""


class EncodeError(RequestError):
    """The model's outputs have no form in the format that the caller asked for."""


class PayloadTooLarge(RequestError):
    """The body is larger than the limit, or than the memory left can hold."""


class NotReady(ServeError):
    """The model is still loading."""


class Overloaded(ServeError):
    """No permit became free in time.

    Args:
        message: What is exhausted.
        retry_after_s: Seconds after which another try makes sense.
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServeError):
    """The request took longer than the operator allows one to take."""


class Abandoned(ServeError):
    """Whoever sent the request has gone; what was left of the work is not done."""


class OutOfMemory(ServeError):
    """A single row needs more memory than this server has left for it."""


class InferenceError(ServeError):
    """Onnxruntime failed on a feed that conforms to the model's declared inputs."""


class ContainerError(ServeError):
    """A container cannot be reached, refuses, or answers what it must not.

    Args:
        message: One line.
        retry_after_s: Seconds to wait before another try; None if another try makes no sense.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def quote(value: object) -> str:
    """A short, one-line, double-quoted rendering of a piece of payload for an error message.

    Args:
        value: Text, bytes or anything with a ``str``; at most 40 characters of it are shown.
    """
    # Cut before rendering: a payload's cell may be a hundred megabytes long.
    if isinstance(value, bytes | bytearray | memoryview):
        text = bytes(value[: _QUOTE_LENGTH + 1]).decode("utf-8", "replace")
    elif isinstance(value, str):
        text = value[: _QUOTE_LENGTH + 1]
    else:
        try:
            text = str(value)
        except ValueError:  # an integer of more digits than Python renders
            text = f"a {type(value).__name__} too large to show"
    if len(text) > _QUOTE_LENGTH:
        text = text[:_QUOTE_LENGTH] + "..."
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return f'"{printable}"'
