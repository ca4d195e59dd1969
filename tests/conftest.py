"""What the test files share: where the public data lies, and how Hypothesis draws."""

from pathlib import Path

import pytest
from hypothesis import settings

# Always the same examples, so that a run says something about the code only; --hypothesis-profile=thorough
# draws ten thousand.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=300)
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=10_000)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def data_folder():
    """The folder of public data sets that may lie beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public data sets are not at {folder}")
    return folder
