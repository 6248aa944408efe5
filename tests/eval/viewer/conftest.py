"""One Chromium for all browser tests. Without it they fail with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.viewer import synth
from tests.eval.viewer.browser import Browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="package")
def results(tmp_path_factory) -> Path:
    return synth.results_folder(tmp_path_factory.mktemp("results"), 60)
