"""The report in a real browser: opening, filtering, sorting, hovering and drawing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from explained import explanation, store
from pandas import DataFrame
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from analysis import explain, explained, load, page, palette, report
from analysis.browser import BROWSER, DRIVER
from analysis.findings import analyze
from gptlab.tracking.run import Run

MakeRun = Callable[..., Run]

HOSTILE = (
    "<b>bold</b> <img src=x onerror=document.title='owned'><script>document.title='owned'</script>&amp; \"quoted\""
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def three_experiments(make_run: MakeRun, weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three experiments. One has a sample full of HTML, one has HTML as its name and question."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        for seed in range(2):
            base = make_run(
                "base", seed, val_losses=(11.0, 8.0, 6.0 + seed / 10), checkpoints={10: weights, 20: weights}
            )
            store(base, explanation())
            make_run("better", seed, changes={"model.tied": True}, val_losses=(11.0, 7.0, 5.0), samples=[HOSTILE])
        odd = make_run(
            "odd", val_losses=(11.0, 9.0, 7.0), why=HOSTILE, source=HOSTILE, sha256="ef" * 32, outcome="interrupted"
        )
        store(odd, explanation(lower=0.25))
        runs = load.runs()
        is_odd = runs["name"] == "odd"
        renamed = runs.assign(
            run=runs["run"].where(~is_odd, HOSTILE + "-s0"),
            name=runs["name"].where(~is_odd, HOSTILE),
            experiment=runs["experiment"].where(~is_odd, HOSTILE),
        )
        return write_page(renamed, folder, HOSTILE)


def write_page(runs: DataFrame, folder: Path, title: str = "") -> Path:
    path = folder / "report.html"
    findings = analyze(runs, load.metrics(runs), load.samples(runs))
    section = explained.section(findings, explain.explained_runs(runs))
    path.write_text(page.to_html(findings, load.checkpoints(runs), title, section), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: WebDriver, three_experiments: Path) -> WebDriver:
    browser.get(three_experiments.as_uri())
    drawn = [f"#{name} .points path" for name in ("curves", "estimates", "differences", "loss-by-context")]
    drawn += ["#loss-by-count .points path", "#weights .hm image"]
    for mark in drawn:  # plotly draws after the load event
        wait_for(browser, lambda mark=mark: browser.find_elements(By.CSS_SELECTOR, mark))
    return browser


@pytest.fixture
def unchanged(request: pytest.FixtureRequest, browser: WebDriver) -> WebDriver:
    """The same for a test that leaves the page as it is: it is not opened again for the next one of these tests."""
    if not browser.execute_script("return window.unchanged"):
        request.getfixturevalue("opened")
        browser.execute_script("window.unchanged = true")
    return browser


def listed_runs(driver: WebDriver) -> list[str]:
    """The displayed runs of the table, from top to bottom."""
    return list(
        driver.execute_script(
            "return [...document.querySelectorAll('#runs-table tbody tr')].filter((row) => row.checkVisibility())"
            ".map((row) => row.querySelector('td label').innerText.trim())"
        )
    )


def curve_names(driver: WebDriver) -> list[str]:
    """The names of the curves that are drawn."""
    names = driver.execute_script("return document.getElementById('curves').data.map(t => t.name)")
    return [name for name in names if name]


def console_problems(driver: WebDriver) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]


def wait_for(driver: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(driver, 30).until(lambda _: condition())


def test_the_report_opens_without_console_errors_and_draws_every_figure(opened: WebDriver) -> None:
    for plot in ("curves", "estimates", "differences", "question-0", "speed", "weights"):
        assert opened.find_elements(By.CSS_SELECTOR, f"#{plot} .main-svg"), plot
    traces = opened.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer .trace")
    assert len(traces) == 13, "three lines and two differences, and two edges of a band each, except for a single seed"
    assert not console_problems(opened)


def test_html_in_names_questions_and_samples_is_displayed_as_text(unchanged: WebDriver) -> None:
    assert unchanged.title == "Runs"
    assert not unchanged.find_elements(By.CSS_SELECTOR, "img, body script:not([type]) + pre script")
    assert HOSTILE in unchanged.find_element(By.TAG_NAME, "pre").text
    assert HOSTILE in unchanged.find_element(By.TAG_NAME, "header").text
    assert any(HOSTILE in run for run in listed_runs(unchanged))
    assert any(HOSTILE in item.text for item in unchanged.find_elements(By.CSS_SELECTOR, ".question h3"))
    legend = [item.text for item in unchanged.find_elements(By.CSS_SELECTOR, "#curves-legend li")]
    assert any("<b>bold</b> <img" in item for item in legend), legend
    assert not console_problems(unchanged)


def test_swatches_and_curves_of_an_experiment_have_the_same_color(unchanged: WebDriver) -> None:
    swatches = unchanged.execute_script(
        "return [...document.querySelectorAll('table')[0].querySelectorAll('.swatch')]"
        ".map((swatch) => getComputedStyle(swatch).backgroundColor)"
    )
    rgb = [", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5)) for color in palette.COLORS[:3]]
    assert swatches == [f"rgb({color})" for color in rgb]
    curves = unchanged.execute_script(
        "return document.getElementById('curves').data.filter((line) => line.name).map((line) => line.line.color)"
    )
    assert curves == list(palette.COLORS[:3])


def test_hovering_a_curve_shows_its_numbers(unchanged: WebDriver) -> None:
    plot = unchanged.find_element(By.ID, "curves")
    unchanged.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)

    def is_hovered() -> bool:
        point = unchanged.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer .trace .points path")[-1]
        ActionChains(unchanged).move_to_element(plot).move_to_element(point).perform()
        return bool(unchanged.find_elements(By.CSS_SELECTOR, "#curves .hoverlayer .hovertext"))

    wait_for(unchanged, is_hovered)
    hover_text = unchanged.find_element(By.CSS_SELECTOR, "#curves .hoverlayer").text
    assert "step 20" in hover_text
    assert not console_problems(unchanged)


def test_a_figure_keeps_its_height_when_the_window_is_resized(unchanged: WebDriver) -> None:
    def svg(side: str) -> int:
        return int(unchanged.execute_script(f"return document.querySelector('#speed .main-svg').client{side}"))

    height, window = svg("Height"), unchanged.get_window_size()
    for width in (window["width"] - 300, window["width"] - 400, window["width"]):
        before = svg("Width")
        unchanged.set_window_size(width, window["height"])
        wait_for(unchanged, lambda before=before: svg("Width") != before)
    assert svg("Height") == height


def test_buttons_and_search_filter_the_runs(opened: WebDriver) -> None:
    assert len(listed_runs(opened)) == 5
    chip = opened.find_element(By.CSS_SELECTOR, ".chip[data-value='interrupted']")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", chip)
    chip.click()
    assert [HOSTILE in run for run in listed_runs(opened)] == [True]
    assert opened.find_element(By.ID, "count").text == "1 of 5 runs"
    chip.click()
    search = opened.find_element(By.ID, "filter")
    search.send_keys("BETTER s1")
    (run,) = listed_runs(opened)
    assert run.startswith("better-")
    search.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(listed_runs(opened)) == 5
    assert not console_problems(opened)


def test_columns_sort_in_both_directions_by_mouse_and_keyboard(opened: WebDriver) -> None:
    header = next(b for b in opened.find_elements(By.CSS_SELECTOR, "#runs-table th button") if b.text == "val loss")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", header)
    header.click()
    ascending = listed_runs(opened)
    assert HOSTILE in ascending[-1]
    assert ascending[0].startswith("better-")
    header.send_keys(Keys.ENTER)
    descending = listed_runs(opened)
    assert HOSTILE in descending[0]
    assert header.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    assert not console_problems(opened)


def test_loss_axes_smoothing_and_seeds_are_selected_by_keyboard(opened: WebDriver) -> None:
    def layout(axis: str, key: str) -> str:
        return str(opened.execute_script(f"return document.getElementById('curves').layout.{axis}.{key}"))

    form = opened.find_element(By.ID, "curve-controls")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", form)
    assert "validation" in layout("yaxis", "title.text")
    form.find_element(By.CSS_SELECTOR, "input[value=val]").send_keys(Keys.ARROW_RIGHT)
    assert "training" in layout("yaxis", "title.text")
    for axis, words in {"tokens": "tokens", "flops": "training FLOPs", "time": "seconds of training"}.items():
        form.find_element(By.CSS_SELECTOR, f"input[value={axis}]").send_keys(Keys.SPACE)
        assert layout("xaxis", "title.text") == words
    form.find_element(By.NAME, "logx").send_keys(Keys.SPACE)
    assert layout("xaxis", "type") == "log"
    assert len([name for name in curve_names(opened) if not name.endswith("(raw)")]) == 3
    form.find_element(By.NAME, "mean").send_keys(Keys.SPACE)
    assert len([name for name in curve_names(opened) if not name.endswith("(raw)")]) == 5
    assert len([name for name in curve_names(opened) if name.endswith("(raw)")]) == 5, "smoothing hides the raw data"
    assert "mean of 10 steps" in layout("yaxis", "title.text")
    form.find_element(By.NAME, "smoothing").send_keys(Keys.HOME)
    assert not [name for name in curve_names(opened) if name.endswith("(raw)")]
    assert "as logged" in layout("yaxis", "title.text")
    assert not console_problems(opened)


def test_a_short_seed_does_not_cut_the_mean_curve_of_its_experiment(
    browser: WebDriver, make_run: MakeRun, tmp_path: Path
) -> None:
    for seed, losses in enumerate([(11.0, 8.0, 6.0), (11.0, 8.0, 7.0), (11.0, 1.0)]):
        make_run("base", seed, val_losses=losses)
    assert report.main(["--out", str(tmp_path)]) == 0
    browser.get((tmp_path / "report.html").as_uri())
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#curves .points path"))
    (curve,) = browser.execute_script(
        "return document.getElementById('curves').data.filter(t => t.name).map(t => [t.name, t.x, t.y])"
    )
    assert curve == ["base (2)", [0, 10, 20], [11, 8, 6.5]]


def test_checkboxes_and_buttons_select_the_runs_to_draw(opened: WebDriver) -> None:
    box = opened.find_elements(By.CSS_SELECTOR, "#runs-table tbody input")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    drawn = curve_names(opened)
    box.send_keys(Keys.SPACE)
    assert any(name.endswith("(1)") and name not in drawn for name in curve_names(opened))
    opened.find_element(By.ID, "draw-none").click()
    assert curve_names(opened) == []
    opened.find_element(By.ID, "draw-all").click()
    assert curve_names(opened) == drawn
    assert not console_problems(opened)


def test_a_menu_selects_the_weight_statistic(opened: WebDriver) -> None:
    def z() -> object:
        return opened.execute_script("return document.getElementById('weights').data[0].z")

    assert z() == [[1, 1], [2, 2]]
    opened.find_element(By.CSS_SELECTOR, "#weight-controls [name=statistic]").send_keys(Keys.END)
    assert z() == [[None, 0], [None, 0]]
    assert not console_problems(opened)


def test_colors_follow_the_color_scheme(opened: WebDriver) -> None:
    def colors() -> tuple[str, str]:
        background = opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        return background, opened.execute_script("return document.getElementById('curves').layout.font.color")

    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.append(colors())
    assert seen[0][0] != seen[1][0]
    wait_for(opened, lambda: colors()[1] != seen[0][1])
    assert not console_problems(opened)


FEW = ({}, {"train.learning_rate": 3e-3}, {"model.n_layer": 1}, {"model.tied": True}, {"model.bias": False})
MANY = (*FEW, {"train.betas": [0.8, 0.99], "train.weight_decay": 0.05}, {"train.batch_size": 4, "data.val_windows": 16})

OUTSIDE = """
const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
const inScroller = (element, card) => {
  for (let e = element.parentElement; e !== card; e = e.parentElement) if (scrolls(e)) return true;
  return false;
};
const out = [];
for (const card of document.querySelectorAll("section, article, .plot")) {
  const box = card.getBoundingClientRect();
  if (card._fullLayout && card._fullLayout._size.w < 0.45 * box.width) out.push(`${card.id}: names fill the figure`);
  for (const element of card.querySelectorAll(":not(.draglayer, .draglayer *)")) {
    const own = element.getBoundingClientRect();
    if (own.width && !inScroller(element, card) && (own.left < box.left - 1 || own.right > box.right + 1))
      out.push(`${card.id || card.tagName}: ${element.outerHTML.slice(0, 80)}`);
    const tall = element.tagName === "text" && card.classList.contains("plot");
    if (tall && (own.top < box.top - 1 || own.bottom > box.bottom + 1)) out.push(`${card.id}: ${element.textContent}`);
  }
}
return out;
"""
"""Elements that are wider than their card, texts that a figure cuts off, and figures that are full of names.

Elements that scroll sideways may contain wider ones. plotly's `draglayer` has invisible handles around the axes.
"""

TABLES = """
return [...document.querySelectorAll(".wide")].map((scroller) => {
  const box = scroller.getBoundingClientRect(), table = scroller.querySelector("table");
  const headers = [...table.querySelectorAll("th")].filter((th) => th.offsetWidth);
  const loss = headers.find((th) => /^val loss|^bits/.test(th.textContent));
  scroller.scrollLeft = 10000;
  const sticky = table.querySelector("td").getBoundingClientRect().left - box.left;
  scroller.scrollLeft = 0;
  return { label: scroller.getAttribute("aria-label"), fits: scroller.scrollWidth <= scroller.clientWidth, sticky,
    inside: table.closest("section").getBoundingClientRect().right >= box.right,
    name: headers[0].getBoundingClientRect().right <= box.right,
    loss: !loss || loss.getBoundingClientRect().right <= box.right };
});
"""


@pytest.fixture(scope="module", params=[FEW, MANY], ids=["few", "many"])
def long_names(
    request: pytest.FixtureRequest, make_run: MakeRun, weights, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A report of experiments with long names, of three seeds each, and of one branch."""
    folder = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        for number, change in enumerate(request.param):
            for seed in range(3):
                make_run(
                    f"a-rather-long-experiment-name-{number}",
                    seed,
                    why=f"What does the {'very ' * number}interesting_setting_of_this_experiment change?",
                    changes=change,
                    val_losses=(11.0, 8.0, 6.0 + number / 10 + seed / 100),
                    yardstick="bbbbbbbb" if number == 1 else "aaaaaaaa",
                    outcome="interrupted" if number == 2 and seed == 2 else "complete",
                    diff_sha256="12" * 32 if number == 1 else None,
                    host="node-17.cluster.example.org",
                    checkpoints={20: weights},
                    samples=["word " * 40 + "x" * 200],
                )
        return write_page(load.runs(), folder)


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def sized(request: pytest.FixtureRequest, browser: WebDriver) -> Iterator[WebDriver]:
    """The browser with the viewport of a desktop or a phone."""
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_is_wider_than_its_card_and_every_table_starts_with_name_and_loss(
    sized: WebDriver, long_names: Path
) -> None:
    sized.get(long_names.as_uri())
    for scheme in ("light", "dark"):
        emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        sized.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        wait_for(sized, lambda: sized.find_elements(By.CSS_SELECTOR, "#weights .hm image"))
        width = sized.execute_script("return innerWidth")
        assert sized.execute_script("return document.scrollingElement.scrollWidth") <= width
        assert not sized.execute_script(OUTSIDE)
        tables = sized.execute_script(TABLES)
        assert len(tables) == 5
        for table in tables:
            assert (table["inside"], table["name"], table["loss"]) == (True, True, True), table
            assert abs(table["sticky"]) <= 1, table
            assert table["fits"] or width < 1280, table
        assert not console_problems(sized)


@pytest.fixture(scope="module")
def falling(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two experiments with three seeds each, whose losses fall fast and then slowly."""
    folder = tmp_path_factory.mktemp("falling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_RUNS", str(folder / "runs"))
        for name, changes, shift in (("base", {}, 0.0), ("better", {"model.tied": True}, 0.1)):
            for seed in range(3):
                losses = [
                    11.0,
                    7.0 - 10 * shift,
                    *(5.0 - step / 100 - shift + seed / 50 * (1 + shift) for step in range(10)),
                ]
                make_run(name, seed, changes=changes, val_losses=losses)
        return write_page(load.runs(), folder)


def test_the_axes_begin_after_the_initial_fall_and_a_switch_shows_everything(browser: WebDriver, falling: Path) -> None:
    def shown(axis: str) -> list[float]:
        return browser.execute_script(f"return document.getElementById('curves')._fullLayout.{axis}.range")

    browser.get(falling.as_uri())
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#curves .points path"))
    assert shown("yaxis") == pytest.approx([4.78, 5.07], abs=0.03)
    low, high = shown("yaxis2")
    assert -0.2 < low < -0.1 < 0 < high < 0.1
    browser.find_element(By.NAME, "whole").send_keys(Keys.SPACE)
    assert shown("yaxis")[1] > 11
    assert not console_problems(browser)


def test_the_lower_panel_draws_the_differences_with_their_intervals(browser: WebDriver, falling: Path) -> None:
    browser.get(falling.as_uri())
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#curves .points path"))
    (difference,) = browser.execute_script("return DATA.differences")
    panel = browser.execute_script(
        "return document.getElementById('curves').data.filter(t => t.yaxis === 'y2').map(t => [t.x, t.y, t.line.color])"
    )
    assert [y for _, y, _ in panel] == [difference["low"], difference["high"], difference["mean"]]
    assert panel[-1][0] == difference["step"] == [10 * number for number in range(12)]
    assert panel[-1][2] == palette.color(difference["color"])
    assert "difference, nats per token" in browser.find_element(By.ID, "curves").text
    assert "minus that of base at equal steps" in browser.find_element(By.ID, "curves-section").text


def test_the_best_50_runs_are_listed_and_a_button_shows_the_rest(
    browser: WebDriver, make_run: MakeRun, tmp_path: Path
) -> None:
    for number in range(60):
        make_run(
            "many", number % 5, changes={"train.learning_rate": 1e-3 * (1 + number // 5)}, val_losses=(9 - number / 60,)
        )
    browser.get(write_page(load.runs(), tmp_path).as_uri())
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#curves .points path"))
    assert len(listed_runs(browser)) == 50
    assert len(curve_names(browser)) == 8
    more = browser.find_element(By.ID, "more")
    assert more.text == "Show all 60"
    more.send_keys(Keys.ENTER)
    assert len(listed_runs(browser)) == 60
    assert not console_problems(browser)
