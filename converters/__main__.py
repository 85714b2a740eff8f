"""``python -m converters convert ARTIFACT --output DIR`` is ``onnx-serve convert``."""

import sys

if __name__ == "__main__":
    # Started as a script, this folder comes first in sys.path, and torch.py here would stand for torch.
    if not __package__:
        sys.exit("converters: start with python -m converters")
    from converters.command import main

    sys.exit(main())
