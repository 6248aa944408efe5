from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from deepdive.web.readers import ReaderConfig, Readers

from tests.environments.deepdive import site as sites


@pytest.fixture
async def site() -> AsyncIterator[sites.Site]:
    async with sites.serve() as running:
        yield running


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    """With wide limits: a test that is about a limit narrows it."""
    pool = Readers(ReaderConfig(processes=1, seconds=300.0, pattern_seconds=60.0))
    yield pool
    await pool.aclose()
