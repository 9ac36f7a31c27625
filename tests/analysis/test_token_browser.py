"""The page of single tokens in a real browser: safe, legible in both color schemes, for mouse, keyboard and touch."""

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from token_documents import document

from analysis import token_page
from analysis.browser import BROWSER, DRIVER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=document.title='owned'>"
CONTENTS = [
    *(b"First", b" line", b"\n", b"\t", b"x", b"    ", b"=", b" 1", b"\r\n", b"\n\n"),
    *(SCRIPT.encode(), IMAGE.encode(), b"\"'&amp;", b"</span>", b"\x1b[31m", "\u202eevil".encode(), b"\0"),
    *(b" \xf0\x9f", b"\x98", b"\x80", "é".encode(), b"\xff", b"\n"),
    *("שלום".encode(), " עולם".encode(), b"\n", "مرحبا".encode(), b"\n", b"x" * 120, b" last"),
]
PLAIN = "Return the mean of the values in each group of rows, without those that are missing. "

CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const pixel = (...colors) => {
  for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
const contrast = (...colors) => {
  const [dark, light] = colors.map(luminance).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const page = getComputedStyle(document.querySelector("section")).backgroundColor;
const against = (element, color) => {
  const behind = getComputedStyle(element.closest(".tok")).backgroundColor;
  return contrast(pixel(page, behind), pixel(page, behind, color));
};
const [tokens, marks] = [".tok", ":is(i.n, i.h)"].map((kind) => [...document.querySelectorAll(`#passage ${kind}`)]);
return {
  text: Math.min(...tokens.map((token) => against(token, getComputedStyle(token).color))),
  marks: Math.min(...marks.map((mark) => against(mark, getComputedStyle(mark, "::before").color))),
  backgrounds: tokens.map((token) => pixel(page, getComputedStyle(token).backgroundColor)),
};
"""
"""The lowest contrasts of text and of marks with the colors of their tokens, and these colors."""

OUTSIDE = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll("section *, aside *, header *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && !element.closest(".wide") && (box.left < -1 || box.right > width + 1);
}).map((element) => element.outerHTML.slice(0, 80));
"""


class Page:
    """An opened page."""

    def __init__(self, browser: WebDriver, path: Path, runs: int, contents: list[bytes]) -> None:
        path.write_text(token_page.to_html(document([contents] * runs)), encoding="utf-8")
        self.browser = browser
        self.url = path.as_uri()

    def open(self, *, width: int = 1280, scheme: str = "light") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get(self.url)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def token(self, number: int) -> WebElement:
        return self.browser.find_element(By.ID, f"t{number}")

    def panel(self) -> str:
        return self.browser.find_element(By.ID, "panel").text

    def focused(self) -> str:
        return self.run("return document.activeElement.id")

    def problems(self) -> list[str]:
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}
        ]


def distance_to_gray(color: list[int]) -> int:
    return max(color) - min(color)


def test_hostile_text_is_text_and_stays_in_its_place(browser: WebDriver, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "page.html", 1, CONTENTS)
    page.open(width=390)
    assert browser.title == "Tokens of <b>the</b> string"
    assert not page.run("return document.querySelectorAll('img, b b, header i, #passage script').length")
    text = browser.find_element(By.ID, "passage").text
    for shown in (
        SCRIPT,
        IMAGE,
        "\"'&amp;</span>",
        "U+001B",
        "U+202E",
        "U+0000",
        "😀",
        "98",
        "FF",
        "שלום עולם",
        "مرحبا",
    ):
        assert shown in text, shown
    assert "\u202e" not in browser.page_source
    assert page.run("return getComputedStyle(document.querySelector('#t2 i'), '::before').content") == '"↵"'
    tops = page.run("return [1, 2, 3].map((n) => document.getElementById(`t${n}`).getClientRects()[0].top)")
    assert tops[0] == tops[1] < tops[2], "the line breaks after its mark"
    hebrew = page.run("return ['t23', 't24'].map((id) => document.getElementById(id).getBoundingClientRect().right)")
    assert hebrew[0] > hebrew[1] > 200, "from right to left"
    assert page.run("return document.querySelector('.group').getAttribute('role')") == "group"
    assert page.token(17).get_attribute("aria-label") == "space bytes F0 9F"
    for number in range(len(CONTENTS)):
        page.run(f"document.getElementById('t{number}').click()")
    assert page.run("return document.querySelectorAll('#panel :is(img, script)').length") == 0
    assert page.run("return document.scrollingElement.scrollWidth") <= 390
    assert not page.run(OUTSIDE)
    assert not page.problems()
    assert browser.title != "owned"


def test_tokens_are_legible_and_described_for_mouse_keyboard_and_touch(browser: WebDriver, tmp_path: Path) -> None:
    contents = [b"\n" if n % 17 == 16 else f" {word}".encode() for n, word in enumerate((PLAIN * 4).split())]
    one, two = (Page(browser, tmp_path / f"{runs}.html", runs, contents) for runs in (1, 2))
    for page in (one, two):
        for scheme in ("light", "dark"):
            page.open(width=390, scheme=scheme)
            for view in ["d", "a", "b"] if page is two else [""]:
                page.run(f"document.getElementById('view-{view}')?.click()")
                found = page.run(CONTRASTS)
                assert found["text"] >= 4.5, (page.url, scheme, view)
                assert found["marks"] >= 3, (page.url, scheme, view)
                assert len(set(map(tuple, found["backgrounds"]))) > 20, "colors differ"
            assert page.run("return document.scrollingElement.scrollWidth") <= 390
            assert not page.run(OUTSIDE)
            assert page.panel() == "", "on a phone it opens with a tap"
            page.token(3).click()
            assert "token 3" in page.panel()
            last = len(contents) - 1
            page.run(f"document.getElementById('t{last}').click()")
            panel, token = (
                f"document.getElementById('{name}').getBoundingClientRect()" for name in ("panel", f"t{last}")
            )
            assert page.run(f"return {token}.bottom <= {panel}.top"), "the panel does not cover its token"
            browser.find_element(By.CSS_SELECTOR, ".close").click()
            assert page.panel() == ""
        assert page.run("return document.documentElement.lang") == "en"
        assert not page.problems()

    two.open()
    assert [len(row.text) for row in browser.find_elements(By.CSS_SELECTOR, "#panel .letter")] == [1, 1]
    ActionChains(browser).move_to_element(two.token(20)).perform()
    assert "token 20" in two.panel()
    assert "B − A" in two.panel()
    bars = browser.find_elements(By.CSS_SELECTOR, "#panel ol li")
    assert len(bars) >= 10, "five alternatives of each run"
    two.token(5).click()
    assert two.focused() == "t5"
    for key, expected in (
        (Keys.ARROW_RIGHT, "t6"),
        (Keys.ARROW_LEFT, "t5"),
        (Keys.END, f"t{len(contents) - 1}"),
        (Keys.HOME, "t0"),
    ):
        ActionChains(browser).send_keys(key).perform()
        assert two.focused() == expected
    assert "is not predicted" in two.panel()
    ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
    below = int(two.focused()[1:])
    assert two.token(below).location["y"] > two.token(0).location["y"]
    assert abs(two.token(below).location["x"] - two.token(0).location["x"]) < 5
    assert two.run("return document.querySelectorAll('#passage [tabindex=\"0\"]').length") == 1
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert two.panel() == ""
    link = browser.find_element(By.CSS_SELECTOR, "td a")
    two.run("document.querySelector('td a').click()")
    assert two.focused() == link.get_attribute("href").rpartition("#")[2]
    assert f"token {link.text} " in two.panel()
    changes = [
        float(cell.text.replace("−", "-")) for cell in browser.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")
    ]
    assert sorted(changes, key=abs, reverse=True) == changes
    parts = "[role=img], [role=listbox], aside, input"
    assert two.run(f"return [...document.querySelectorAll('{parts}')].every((e) => e.ariaLabel || e.labels?.length)")
    better, worse = (browser.find_element(By.CSS_SELECTOR, f"#passage .{kind}[style]") for kind in ("better", "worse"))
    for element, ink in ((better, 2), (worse, 0)):
        two.run("document.querySelectorAll('#passage .tok').forEach((t) => t.style.setProperty('--d', 1))")
        color = two.run(CONTRASTS)["backgrounds"][int(element.get_attribute("id")[1:])]
        assert color.index(max(color)) == ink, "blue is better, orange is worse"
    two.run("document.querySelectorAll('#passage .tok').forEach((t) => t.style.setProperty('--d', 0))")
    assert {distance_to_gray(color) for color in two.run(CONTRASTS)["backgrounds"]} <= {0, 1, 2}, (
        "the middle is neutral"
    )
    assert not two.problems()
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
