"""The report as a reader has it before them: offline, without a complaint, by mouse, by keyboard and on paper."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest
from PIL import Image

from segdistill.report.page import write_report
from segdistill.results.summary import summarise
from support.fake_metrics import sweep_params, write_metrics
from support.scripts_as_modules import load_script

pytestmark = pytest.mark.slow
OFFLINE = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    metrics = write_metrics(folder / "metrics")
    write_report(summarise(sweep_params(), metrics), metrics, folder / "index.html")
    return (folder / "index.html").as_uri()


@pytest.fixture
def page(browser, page_logs, address: str):
    """Yield the open report; after the test, the page must have logged nothing and requested nothing from elsewhere."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(address)
    yield browser
    console, requested = page_logs()
    assert console == []
    assert requested
    assert [url for url in requested if not url.startswith(OFFLINE)] == []


@pytest.fixture
def screenshots():
    return load_script(Path(__file__).parents[2] / "tools" / "screenshots.py")


def test_screenshots_of_the_report_end_where_a_section_does(browser, screenshots, address: str, tmp_path: Path) -> None:
    screenshots.take_report(address, tmp_path)
    assert sorted(image.name for image in tmp_path.iterdir()) == ["report-frames.png", "report.png"]
    assert all(image.stat().st_size < 400_000 for image in tmp_path.iterdir())
    browser.get(address)
    edge = "Math.round(document.getElementById('training').getBoundingClientRect().top + scrollY)"
    with Image.open(tmp_path / "report.png") as top:
        assert top.size == (1280, in_page(browser, edge) - screenshots.ABOVE_PX)


def test_screenshot_of_a_page_with_errors_or_outside_requests_fails(browser, screenshots, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='https://elsewhere.invalid/x.png'><script>missing()</script>")
    fails = pytest.raises(RuntimeError, match="requested https://elsewhere.invalid")
    with fails as raised, screenshots.chromium((300, 200)) as shown:
        screenshots.open_page(shown, page.as_uri())
    assert "missing is not defined" in str(raised.value)


def in_page(page, script: str, *arguments):
    return page.execute_script(f"return {script}", *arguments)


RUNS = "[...document.querySelectorAll('.sortable')[0].tBodies[0].rows].map(row => row.cells[0].dataset.value)"
MIOU = "document.querySelectorAll('.sortable')[0].querySelectorAll('thead th')[6]"


def test_a_laptop_shows_the_answer_first_and_all_of_the_width(page) -> None:
    assert in_page(page, "document.title").startswith("segdistill")
    top = in_page(page, "document.querySelector('.answer').getBoundingClientRect().bottom")
    assert in_page(page, "document.querySelector('h1').textContent") == "Ship a03 as int8 ONNX"
    assert top < 800, "the answer needs no scrolling"
    assert in_page(page, "document.documentElement.scrollWidth") <= 1280
    assert in_page(page, "document.querySelectorAll('.plot .main-svg').length") >= 3


def test_a_click_sorts_and_another_turns_it_round(page) -> None:
    assert in_page(page, RUNS) == ["teacher", "vanilla", "a03", "light"]
    page.execute_script(f"{MIOU}.querySelector('button').click()")
    assert in_page(page, RUNS) == ["teacher", "a03", "vanilla", "light"]
    assert in_page(page, f"{MIOU}.getAttribute('aria-sort')") == "descending"
    page.execute_script(f"{MIOU}.querySelector('button').click()")
    assert in_page(page, RUNS) == ["light", "vanilla", "a03", "teacher"]


def test_the_keyboard_reaches_everything(page) -> None:
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(in_page(page, "document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))
        if reached[-1] == "mIoU":
            break
    assert "theme" in reached
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert in_page(page, RUNS)[1] == "a03"
    outline = in_page(page, "getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen"


def background(page) -> tuple[str, str]:
    """Return the colours of the page and of its charts."""
    return (
        in_page(page, "getComputedStyle(document.body).backgroundColor"),
        in_page(page, "document.querySelector('#curves .main-svg').style.background"),
    )


def test_dark_follows_the_system_and_the_button(page) -> None:
    light = background(page)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    # The page learns of it by an event, which may come after the next question.
    for _ in range(100):
        dark = background(page)
        if dark[0] != light[0] and dark[1] != light[1]:
            break
        time.sleep(0.1)
    assert dark != light
    assert len(set(dark)) == len(set(light)) == 1, "charts have the colour of the page"
    page.execute_script("document.getElementById('theme').click()")
    assert background(page) == light


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = element => {
    if (!element) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const luminance = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const weak = [];
  for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
    if (element.closest(".plot") || !element.checkVisibility()) continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const back = behind(element), front = over(rgba(getComputedStyle(element).color), back);
    const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${element.className} ${element.textContent.slice(0, 40)}`);
  }
  return weak;
})()"""


def test_every_text_stands_out(page) -> None:
    page.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    for theme in ("light", "dark"):
        page.execute_script("document.documentElement.dataset.theme = arguments[0]; inTheme()", theme)
        assert in_page(page, CONTRAST) == [], theme


def test_another_matrix_can_be_chosen(page) -> None:
    from selenium.webdriver.common.keys import Keys

    shown = "document.getElementById('confusion').data.map(trace => trace.visible)"
    assert in_page(page, shown) == [True, False, False]
    page.execute_script("document.querySelector('.choice input').focus()")
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert in_page(page, shown) == [False, True, False]


def test_a_point_tells_its_name(page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    page.execute_script("document.getElementById('tradeoff').scrollIntoView({block: 'center'})")
    texts = set()
    for point in page.find_elements(By.CSS_SELECTOR, "#tradeoff .scatterlayer .point"):
        ActionChains(page).move_to_element(point).perform()
        texts.add(in_page(page, "document.querySelector('#tradeoff .hoverlayer').textContent"))
    assert any("a03 int8" in text and "20.00 ms" in text for text in texts)
    assert any("teacher float32" in text for text in texts)


CUT_OFF = """[...document.querySelectorAll(".plot")].filter(place => {
  const paper = document.body.getBoundingClientRect(), room = place.getBoundingClientRect();
  return [...place.querySelectorAll(".main-svg")].map(svg => svg.getBoundingClientRect()).some(
    drawn => drawn.right > paper.right + 1 || drawn.right > room.right + 1 || drawn.bottom > room.bottom + 1);
}).map(place => place.id)"""


def test_charts_are_whole_on_paper(page) -> None:
    """The event comes before the page is laid out on paper, and what is drawn then is what is printed."""
    try:
        page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        page.execute_script("document.body.style.width = '273mm'")  # A4 across, less its margins
        assert in_page(page, CUT_OFF) == []
        assert in_page(page, "document.getElementById('curves').querySelector('.main-svg').clientWidth") > 900
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.execute_script("document.body.style.width = ''; window.dispatchEvent(new Event('afterprint'))")
    widths = "[...document.querySelectorAll('#curves, #curves .main-svg')].map(part => part.clientWidth)"
    assert len(set(in_page(page, widths))) == 1, "as wide as the window again"


def test_tiles_are_two_by_two_and_names_stay_in_view_at_800_px(page) -> None:
    metrics = {"width": 800, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    try:
        corners = "[...document.querySelectorAll('.tiles > div')].map(tile => [tile.offsetLeft, tile.offsetTop])"
        (left, top), (right, _), (_, bottom), last = in_page(page, corners)
        assert last == [right, bottom]
        assert right > left
        assert bottom > top
        assert in_page(page, "document.documentElement.scrollWidth") <= 800
        page.execute_script("document.querySelector('.scroll').scrollLeft = 400")
        rows = "[...document.querySelectorAll('.scroll tr')].slice(0, 3)"
        places = f"{rows}.map(row => row.cells[0].getBoundingClientRect().x)"
        frame = in_page(page, "document.querySelector('.scroll').getBoundingClientRect().x")
        assert all(abs(place - frame) < 2 for place in in_page(page, places)), "heading and names are sticky"
    finally:
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | {"width": 1280})


def test_holdout_miou_comes_first_and_axes_have_titles(page) -> None:
    names = "'#curves .ytitle, #curves .y2title, #curves .y3title'"
    titles = f"[...document.querySelectorAll({names})].map(title => title.textContent)"
    assert in_page(page, titles) == ["Holdout mIoU, %", "Loss", "Label loss"]
    assert "logarithmic axis" in in_page(page, "document.querySelector('#tradeoff .xtitle').textContent")


def test_print_shows_all_and_in_light(page) -> None:
    page.execute_script("""
      document.documentElement.dataset.theme = "dark"; inTheme();
      window.printed = [];
      window.addEventListener("beforeprint", () => printed.push(
        document.querySelectorAll("details:not([open])").length,
        document.querySelector("#curves .main-svg").style.background));
    """)
    content = base64.b64decode(page.print_page())
    assert content.startswith(b"%PDF")
    assert 3 <= content.count(b"/Type /Page\n") <= 12
    assert in_page(page, "printed") == [0, "rgb(255, 255, 255)"]
    assert in_page(page, "document.querySelectorAll('details[open]').length") == 0, "folded as it was"
