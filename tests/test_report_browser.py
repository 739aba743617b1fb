"""Reports in a browser: that they open without an error or a request, and that what can be pressed does what it says.

Skipped where there is no Chromium with its driver; on Debian: apt-get install chromium chromium-driver.
"""

import csv
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from report_subjects import HOSTILE, make_runs
from torch import nn

import vecsweep as vs

pytest.importorskip("plotly")
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver on PATH")

PHONE, DESKTOP = 390, 1200
_PATIENCE_S = 90  # on a machine that has much else to do
BUTTONS = {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root cannot have
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    started.set_script_timeout(_PATIENCE_S)
    yield started
    started.quit()


class Opened:
    """A report in the browser."""

    def __init__(self, browser, path, width, theme):
        self.browser, self.path = browser, path
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": theme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(path.as_uri())
        self.wait("return document.documentElement.dataset.ready")

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, script, *arguments, timeout_s=_PATIENCE_S):
        """Wait until a script returns what is true, and return that."""
        end = time.monotonic() + timeout_s
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < end, f"waited in vain for {script}; {self.browser.get_log('browser')}"
            time.sleep(0.05)
        return found

    def section(self, title):
        """The section under a heading."""
        xpath = f"//section[h2[text()='{title}']]"
        return self.browser.find_element("xpath", xpath)

    def draw(self, title):
        """Scroll to a chart until it is drawn; return its section."""
        section = self.section(title)
        self.run("arguments[0].scrollIntoView({behavior: 'instant'})", section)
        self.wait("return arguments[0].querySelector('.main-svg') !== null", section)
        return section

    def slide(self, section, position):
        """Move the slider, from 0 to 100, and wait until the curves are drawn anew."""
        slider = self.find(section, "[type=range]")
        move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.run(move, slider, position)
        twice = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
        self.browser.execute_async_script(twice)

    def traces(self, section):
        """What Plotly was given of curves, with arrays as lists; NaN as None."""
        numbers = "Array.from(own, (value) => Number.isFinite(value) ? value : null)"
        return self.run(
            f"""const list = (own) => {numbers};
            return arguments[0].querySelector('.plot').data.map((own) => ({{
                name: own.name, visible: own.visible, group: own.legendgroup, x: list(own.x), y: list(own.y),
            }}))""",
            section,
        )

    def axis_types(self, section):
        layout = "const {xaxis, yaxis} = arguments[0].querySelector('.plot').layout;"
        return self.run(f"{layout} return {{x: xaxis.type, y: yaxis.type}}", section)

    def titles(self, css):
        """The headings of the sections that have such an element."""
        sections = self.browser.find_elements("css selector", "section")
        return [
            own.find_element("css selector", "h2").text for own in sections if own.find_elements("css selector", css)
        ]

    def find(self, section, css):
        return section.find_element("css selector", css)

    def errors(self):
        return [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        """What was asked for besides the file itself, over a network or not."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [own["params"]["request"]["url"] for own in messages if own["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:", "chrome:")) and url != self.path.as_uri()]


@pytest.fixture
def opened(browser, tmp_path):
    def open_page(subject, width=DESKTOP, theme="light", **options):
        return Opened(browser, subject.to_html(tmp_path / "report.html", **options), width, theme)

    return open_page


def make_task():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    return vs.Task(
        nn.Linear(3, 2), batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), val_batches=batches
    )


SUBJECTS = {
    "sweep": lambda: make_runs(diverged=(1,), stopped=(2,), hyper=({"momentum": 0.0}, {"momentum": 0.9})),
    "grid": lambda: vs.range_test(make_task(), num_lrs=8, num_steps=20, seeds=2),
    "ramp": lambda: vs.range_test(make_task(), method="ramp", num_steps=50),
    "answer": lambda: vs.find_lr(make_task(), num_steps=64, schedules=["constant", "cosine"]),
}


@pytest.mark.parametrize(
    ("subject", "width", "theme"),
    [
        ("sweep", DESKTOP, "light"),
        ("sweep", PHONE, "dark"),
        ("grid", PHONE, "light"),
        ("ramp", DESKTOP, "dark"),
        ("answer", PHONE, "dark"),
    ],
)
def test_report_opens_without_an_error_or_a_request_and_fits_its_window(subject, width, theme, opened):
    page = opened(SUBJECTS[subject](), width, theme)
    charts = page.titles("[data-chart]")
    assert "Curves" in charts
    for title in charts:
        page.draw(title)
    assert page.errors() == []
    assert page.requests() == []
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run("return document.documentElement.dataset.theme") == theme
    plots = page.browser.find_elements("css selector", ".plot")
    assert all(len(own.get_attribute("aria-label")) > 40 and own.get_attribute("tabindex") == "0" for own in plots)
    assert len(plots) == len(charts)


def test_hostile_names_run_nothing_and_are_shown_as_they_are(opened):
    runs = make_runs(schedules=(HOSTILE, "constant"), hyper=({HOSTILE: 1.0}, {HOSTILE: 2.0}), metrics=(HOSTILE,))
    page = opened(runs, metric=HOSTILE, mode="min")
    for title in page.titles("[data-chart]"):
        section = page.draw(title)
        assert section.find_elements("css selector", "img, script, a[href^=javascript]") == []
    assert page.run("return document.title") == "Sweep - vecsweep"
    assert HOSTILE in page.find(page.section("Curves"), ".legend").text
    assert HOSTILE in page.run("return document.querySelector('.ytitle').textContent")
    assert page.errors() == []


def test_page_answers_to_pointer_and_keyboard(opened):
    """One page for all of these: what takes time is to open it."""
    runs = make_runs()
    page = opened(runs)
    section = page.draw("Curves")
    _point_at_a_curve(page, section, runs)
    _walk_along_a_curve(page, section, runs)
    _hide_and_single_out(page, section)
    _change_axes(page, section)
    _change_metric(page, section)
    _change_theme(page, section)
    buttons = section.find_elements("css selector", ".modebar-btn")
    assert {own.get_attribute("data-title") for own in buttons} == BUTTONS, "none that would send the data anywhere"
    assert page.errors() == []


def _point_at_a_curve(page, section, runs):
    x, y = page.run(
        """const plot = arguments[0].querySelector('.plot'), {xaxis, yaxis} = plot._fullLayout;
        const line = plot.data.find((own) => own.name), box = plot.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.d2p(line.x[2]), box.y + yaxis._offset + yaxis.d2p(line.y[2])]""",
        section,
    )
    actions = webdriver.ActionChains(page.browser).w3c_actions
    for shift in (3, 0):
        actions.pointer_action.move_to_location(round(x) + shift, round(y))
    actions.perform()
    text = page.wait("return arguments[0].querySelector('.hoverlayer').textContent", section)
    values = [f"{pair.mean():.4g}" for pair in runs.metrics["val_loss"][2].reshape(6, 2)]
    assert any(f"3, {value}" in text for value in values), f"the third of four epochs; got {text}"


def _walk_along_a_curve(page, section, runs):
    plot = page.find(section, ".plot")
    for _ in range(2):
        plot.send_keys(webdriver.Keys.ARROW_RIGHT)
    value = runs.metrics["val_loss"][1, :2].mean()
    assert page.find(section, ".readout").text == f"lr 0.01, constant: x 2, y {value:.4g}"
    plot.send_keys(webdriver.Keys.ARROW_DOWN)
    assert page.find(section, ".readout").text.startswith("lr 0.01, cosine: x 2")


def _hide_and_single_out(page, section):
    second = page.find(section, '.legend [data-group="1"]')
    second.send_keys(webdriver.Keys.ENTER)
    assert second.get_attribute("aria-pressed") == "false"
    assert {own["group"]: own["visible"] for own in page.traces(section)} == {str(i): i != 1 for i in range(6)}
    page.run("arguments[0].dispatchEvent(new MouseEvent('click', {shiftKey: true}))", second)
    assert {own["group"]: own["visible"] for own in page.traces(section)} == {str(i): i == 1 for i in range(6)}
    page.find(section, ".legend button").click()  # all
    assert all(own["visible"] for own in page.traces(section))


def _change_axes(page, section):
    for axis in ("x", "y"):
        before = page.axis_types(section)[axis]
        box = page.find(section, f'[data-axis="{axis}"]')
        box.click()
        assert {before, page.axis_types(section)[axis]} == {"log", "linear"}
        box.send_keys(" ")
        assert page.axis_types(section)[axis] == before


def _change_metric(page, section):
    page.find(section, "select option:nth-child(2)").click()
    assert page.run("return arguments[0].querySelector('.ytitle').textContent", section) == "train_loss"
    assert len(page.traces(section)[1]["y"]) == 40


def _change_theme(page, section):
    ground = "return arguments[0].querySelector('.plot').layout.paper_bgcolor"
    before = page.run(ground, section)
    page.run("document.getElementById('theme').click()")
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    assert page.run(ground, section) != before


def test_slider_smooths_by_the_debiased_average_of_each_seed_and_the_band_is_theirs(opened):
    runs = make_runs(lrs=(0.1,), schedules=("constant",), seeds=3, num_steps=200, metrics=())
    page = opened(runs)
    section = page.draw("Curves")
    page.slide(section, 0)
    assert page.find(section, "output").text == "as recorded"
    np.testing.assert_allclose(page.traces(section)[1]["y"], runs.train_loss.mean(axis=1), rtol=1e-6)
    page.slide(section, 50)
    weight = 1 - 1 / np.sqrt(2 * 40)  # half-way from 2 steps to a fifth of the run, in its logarithm
    past = weight ** np.arange(200)[:, None]
    seeds = np.array([(past[: t + 1] * runs.train_loss[t::-1]).sum(axis=0) / past[: t + 1].sum() for t in range(200)])
    band, line = page.traces(section)
    np.testing.assert_allclose(line["y"], seeds.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(band["y"][:200], seeds.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(band["y"][200:400][::-1], seeds.max(axis=1), rtol=1e-5)
    assert page.find(section, "output").text == "over about 9 steps"


def test_thinned_curve_touches_the_lowest_and_the_highest_value(opened):
    runs = make_runs(lrs=(0.1, 1.0), schedules=("constant",), seeds=1, num_steps=20_000, metrics=())
    page = opened(runs)
    section = page.draw("Curves")
    page.slide(section, 0)
    line = page.traces(section)[0]
    assert len(line["y"]) == 2000
    assert min(line["y"]) == pytest.approx(runs.train_loss[:, 0].min())
    assert max(line["y"]) == pytest.approx(runs.train_loss[:, 0].max())
    assert np.all(np.diff(line["x"]) > 0)


def test_line_ends_where_its_last_seed_was_stopped(opened):
    page = opened(make_runs(lrs=(0.1, 1.0), schedules=("constant",), seeds=1, stopped=(0,)))
    stopped, other, mark = page.traces(page.draw("Curves"))
    assert stopped["y"][2:] == [None, None]
    assert None not in other["y"]
    assert mark["name"] == "stopped"
    assert mark["x"] == [2]


def test_table_is_sorted_by_number_and_by_text_and_downloaded_with_all_its_digits(opened, downloads):
    runs = make_runs(lrs=(1.0, 0.01, 1 / 3), schedules=("constant", 'a "quoted", name'), seeds=1, diverged=(2,))
    page = opened(runs)
    section = page.section("Members")
    heads = [head.text for head in section.find_elements("css selector", "th")]

    def sort(name):
        k = heads.index(name) + 1
        page.find(section, f"th:nth-child({k}) button").send_keys(webdriver.Keys.ENTER)
        cells = section.find_elements("css selector", f"tbody td:nth-child({k})")
        return page.find(section, f"th:nth-child({k})").get_attribute("aria-sort"), [cell.text for cell in cells]

    assert sort("lr") == ("ascending", ["0.01", "0.01", "0.3333", "0.3333", "1", "1"])
    assert sort("lr") == ("descending", ["1", "1", "0.3333", "0.3333", "0.01", "0.01"])
    assert sort("schedule") == ("ascending", ['a "quoted", name'] * 3 + ["constant"] * 3)
    for direction in ("ascending", "descending"):
        assert sort("val_loss")[0] == direction
        assert sort("val_loss")[1][-1] == "-", "what is missing comes last, either way"
        sort("val_loss")
    sort("member")
    page.run("document.querySelector('[data-file=\"members.csv\"]').click()")
    rows = _wait_for_csv(downloads / "members.csv")
    assert [float(row["lr"]) for row in rows] == [member.lr for member in runs.members]
    assert [row["schedule"] for row in rows] == [member.schedule for member in runs.members]
    finals = [float(row["val_loss"] or "nan") for row in rows]
    np.testing.assert_array_equal(finals, runs.final("val_loss"))


def _wait_for_csv(path):
    end = time.monotonic() + _PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
