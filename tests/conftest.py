"""What the test files share: where the public data lies, and how Hypothesis draws."""

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# `python -m pytest` puts the checkout first, where fastopt may be source alone: an installed one comes before it.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [folder for folder in sys.path if folder not in ("", str(ROOT))] + [str(ROOT)]

# A job started in the background may have been told to ignore Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Always the same examples, so that a run says something about the code only; --hypothesis-profile=thorough
# draws ten thousand.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=300)
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=10_000)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def as_many_threads_as_are_asked_for():
    """Also for small work, and on few processors: the library would take fewer."""
    from fastopt import boundary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundary, "WORTH_A_THREAD", 1)
        patch.setattr(boundary, "processors", lambda: boundary.MAX_THREADS)
        yield


@pytest.fixture(scope="session")
def data_folder():
    """The folder of public data sets that may lie beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public data sets are not at {folder}")
    return folder
