"""Pictures of a report, section by section: what `screenshots.py --all` takes of it.

python docs/report_pictures.py    # report*.png in docs/, from reports/index.html of the current folder
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from chromium_pages import chromium, open_page, reduce
from PIL import Image

DOCS = Path(__file__).resolve().parent
LARGEST_BYTES = 300_000
ABOVE_PX = 20  # of a heading


def take_report(url: str, folder: Path = DOCS) -> None:
    """The report in pictures, each from one heading to before another: its top by day and by night, then the rest."""
    with chromium((1280, 900), dark=True) as browser:
        open_page(browser, url)
        save_parts(browser, folder / "report-dark.png", [("html", "#training")])
    with chromium((1280, 900)) as browser:
        open_page(browser, url)
        save_parts(browser, folder / "report.png", [("html", "#training")])
        save_parts(browser, folder / "report-models.png", [("#training", "#pictures")])
        first_strip_and_tables = [("#pictures", "h3:nth-of-type(2)"), ("#published", "#conditions")]
        save_parts(browser, folder / "report-frames.png", first_strip_and_tables)


def save_parts(browser, out: Path, parts: list[tuple[str, str]]) -> None:
    """Write parts of the page below one another as a PNG of at most LARGEST_BYTES.

    Each part goes from the top of the first element that a CSS selector finds to before that of another.
    """
    shown = [picture_of(browser, first, until) for first, until in parts]
    joined = Image.new("RGB", (shown[0].width, sum(picture.height for picture in shown)))
    top_px = 0
    for picture in shown:
        joined.paste(picture, (0, top_px))
        top_px += picture.height
    joined.save(out, optimize=True)
    reduce(out, LARGEST_BYTES)


def picture_of(browser, first: str, until: str) -> Image.Image:
    """The page from above the element `first` to before `until`, both CSS selectors, as wide as the window."""
    edge = "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY"
    top, bottom = (max(0, browser.execute_script(edge, selector) - ABOVE_PX) for selector in (first, until))
    width = browser.execute_script("return window.innerWidth")
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as picture:
        return picture.convert("RGB")


if __name__ == "__main__":
    take_report((Path.cwd() / "reports" / "index.html").as_uri())
