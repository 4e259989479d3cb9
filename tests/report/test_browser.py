"""The page in a real browser: `make test-browser`. Needs Debian's packages chromium and chromium-driver, and selenium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from report_example import example

from engineworks.report.write import write_report

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    result, background = example()
    return write_report(result, tmp_path_factory.mktemp("report"), background).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.fail("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


def show(browser: Any, page: str, width: int = 1280, *, dark: bool = False) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme], "media": ""})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page)


def run(browser: Any, script: str) -> Any:
    return browser.execute_script(script)


def test_it_opens_without_an_error_and_without_a_request(browser: Any, page: str) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    show(browser, page)
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert [u for u in urls if not u.startswith("data:")] == [page]
    assert browser.title == "Ship classifier? No", "a hostile message ran"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, page: str, width: int) -> None:
    show(browser, page, width)
    run(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
    assert run(browser, "return document.documentElement.scrollWidth") <= width
    outside = (
        "return [...document.querySelectorAll('main *, header *')].filter(e => e.getBoundingClientRect().right > "
        "innerWidth + 1 && !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert run(browser, outside) == []


def column(browser: Any, index: int) -> list[str]:
    found: list[str] = run(
        browser,
        f"return [...document.querySelectorAll('table.verdicts tbody tr')].map(r => r.cells[{index}].innerText)",
    )
    return found


def test_a_table_sorts_by_numbers_both_ways_and_blanks_come_last(browser: Any, page: str) -> None:
    show(browser, page)
    names = run(browser, "return [...document.querySelectorAll('table.verdicts th')].map(h => h.innerText.trim())")
    at = [name.replace("\u00a0", " ") for name in names].index("p50 ms")
    header = f"document.querySelectorAll('table.verdicts th')[{at}]"
    run(browser, f"{header}.querySelector('button').click()")
    assert run(browser, f"return {header}.getAttribute('aria-sort')") == "ascending"
    assert column(browser, at) == ["0.071", "0.097", "0.182", ""]
    run(browser, f"{header}.querySelector('button').click()")
    assert run(browser, f"return {header}.getAttribute('aria-sort')") == "descending"
    assert column(browser, at) == ["0.182", "0.097", "0.071", ""]


def test_a_table_sorts_by_the_keyboard(browser: Any, page: str) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    button = browser.find_element("css selector", "table.verdicts th:nth-child(2) button")
    button.send_keys(Keys.ENTER)
    assert column(browser, 1) == ["failed", "fail", "inconclusive", "pass"]


def test_a_link_to_a_folded_engine_opens_it(browser: Any, page: str) -> None:
    show(browser, page)
    run(browser, "document.querySelector('table.verdicts a[href$=\"fp32-h100\"]').click()")
    seen = "return document.getElementById('engine-classifier-fp32-h100').checkVisibility()"
    from selenium.webdriver.support.ui import WebDriverWait

    assert WebDriverWait(browser, 5).until(lambda b: b.execute_script(seen))


def test_dark_and_light_are_both_legible(browser: Any, page: str) -> None:
    for dark in (False, True):
        show(browser, page, dark=dark)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        back = run(browser, f"return {style.format('body', 'backgroundColor')}")
        colors = [run(browser, f"return {style.format(s, p)}") for s, p in (
            ("body", "color"), (".muted", "color"), (".tag.fail", "color"), (".tag.pass", "color"), ("figure svg text", "fill"),
        )]  # fmt: skip
        assert all(contrast(back, c) >= 4.5 for c in colors), (dark, back, colors)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two rgb(…) colours."""

    def luminance(text: str) -> float:
        parts = [int(float(c)) / 255 for c in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_prints_everything_that_is_folded(browser: Any, page: str) -> None:
    import base64

    show(browser, page)
    folded = run(
        browser,
        "dispatchEvent(new Event('beforeprint')); return document.querySelectorAll('details:not([open])').length",
    )
    assert folded == 0
    run(browser, "dispatchEvent(new Event('afterprint'))")
    assert run(browser, "return document.querySelectorAll('details:not([open])').length") > 0
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")


def test_a_plot_fits_its_letters_at_phone_size(browser: Any, page: str) -> None:
    show(browser, page, 360)
    smallest = run(
        browser,
        "return Math.min(...[...document.querySelectorAll('figure svg text')].filter(t => t.checkVisibility())"
        ".map(t => t.getBoundingClientRect().height))",
    )
    assert smallest >= 8, "letters of less than 8 px are not read"
