"""The tests of the running container need a built image: ``make test-image`` names it in ``TEST_IMAGE``."""

import os

collect_ignore = (
    []
    if "TEST_IMAGE" in os.environ
    else ["test_build.py", "test_container.py", "test_limits.py", "test_rehearse.py"]
)
