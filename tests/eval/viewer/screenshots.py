"""The pictures in ``docs/viewer.md``: ``python -m tests.eval.viewer.screenshots``.

They show synthetic traces, so that they can be made again anywhere and show each kind of thing once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from eval.viewer import TraceIndex, ViewerServer
from tests.eval.viewer import synth
from tests.eval.viewer.browser import Browser, Page
from tests.eval.viewer.pages import ROWS, opened

FOLDER = Path(__file__).parents[3] / "docs" / "images"
COLOURS = 96
"""Of a picture: enough for flat colours and smoothed letters, at a third of the size."""


def shoot(page: Page, name: str) -> None:
    page.js("new Promise(done => setTimeout(done, 200))")  # scrolling and fonts settle
    path = page.screenshot(FOLDER / f"viewer-{name}.png")
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rlm-results-") as folder:
        index = TraceIndex(synth.results_folder(Path(folder), 240))
        index.refresh()
        with ViewerServer(index) as server, Browser() as browser, browser.page(server.url, 1280, 800) as page:
            page.theme("light")
            page.wait(f"document.querySelector('{ROWS}')")
            page.js("document.getElementById('where').textContent = 'outputs/eval/published'")
            page.js("View.list.setQuery('suite=oolong&sort=-sub_calls'); View.list.refresh()")
            shoot(page, "list")
            opened(page, index, suite="oolong", mode="rlm", turns=5)
            shoot(page, "trace")
            page.js("document.querySelector('.batch').open = true")
            page.wait("document.querySelectorAll('.call').length > 5")
            page.js("document.querySelectorAll('.turn')[1].scrollIntoView()")
            shoot(page, "batch")
            page.theme("dark")
            page.js("document.querySelectorAll('.turn')[2].scrollIntoView()")
            shoot(page, "answer-dark")


if __name__ == "__main__":
    main()
