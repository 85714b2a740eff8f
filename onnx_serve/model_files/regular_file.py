"""Regular files, and what the system says of those that are none or cannot be read."""

import stat

from onnx_serve.errors import ModelError

__all__ = ["kind_of_file", "reason_of", "require_regular"]


def require_regular(mode: int, where: str) -> None:
    """Passes a regular file; anything else might block, never end, or act when it is opened.

    Args:
        mode: ``st_mode``.
        where: What the message calls the file.

    Raises:
        ModelError: It is a folder, a FIFO, a socket or a device.
    """
    if not stat.S_ISREG(mode):
        raise ModelError(f"{where}: expected a regular file, got {kind_of_file(mode)}")


def kind_of_file(mode: int) -> str:
    """What a file's ``st_mode`` says it is, with its article: ``a folder``, ``a FIFO``."""
    kinds = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def reason_of(error: OSError | ValueError) -> str:
    """What the system says of a file, without its path, which ends an ``OSError``'s own text."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
