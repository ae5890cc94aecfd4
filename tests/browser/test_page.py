"""The page in a real Chromium, as people use it: a product is taught, judged, looked up, answered, rolled back."""

from __future__ import annotations

import shutil
import threading
import zipfile
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import httpx2
import numpy as np
import pytest

import tiny_model
from makel.images import SUFFIXES
from makel.station.access import Access, Tokens
from makel.station.fitting import FitSettings
from makel.station.service import create_app, listen, server
from makel.station.station import Settings, Station

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

VIEWS = ("line", "history", "models", "health")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion --window-size=1280,800 --lang=en-GB"
)


class Page:
    """The page of a station in a browser."""

    def __init__(self, browser):
        self.browser, self.address = browser, ""

    def open(self, address, view="line"):
        """A page that has never been here: nothing that an earlier test chose is kept."""
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.address = address
        self.browser.get(f"{address}/healthz")
        self.browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.browser.get_log("browser")  # the browser asked for an icon that only the page has
        self.browser.get(f"{address}/#{view}")

    def go(self, view):
        self.browser.execute_script("location.hash = arguments[0]", f"#{view}")
        self.wait(lambda: self.one("nav [aria-current]").text.lower() == view.partition("/")[0])

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def button(self, words):
        path = f"//button[contains(normalize-space(), '{words}')]"
        return self.wait(lambda: self.browser.find_element(By.XPATH, path))

    def wait(self, condition, timeout_s=20, message=""):
        """Until a condition holds; elements that are drawn anew meanwhile count as not yet."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        ignored = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.browser, timeout_s, poll_frequency=0.05, ignored_exceptions=ignored)
        return wait.until(lambda _: condition(), message)

    def reads(self, selector, words, timeout_s=20):
        self.wait(lambda: words in self.one(selector).text, timeout_s, f"{selector} never read {words!r}")

    def live(self):
        self.reads("#connection", "live")

    @property
    def place(self):
        return self.browser.execute_script("return location.hash")

    def focused(self):
        """The words of what has the focus."""
        return self.browser.execute_script("return document.activeElement.textContent.trim()")

    def post(self, path, **options):
        """What a program sends."""
        return httpx2.post(f"{self.address}{path}", timeout=30, **options).raise_for_status().json()

    def row(self, words):
        """The row of a table that begins so."""
        return next(row for row in self.all(".panel tr") if row.text.startswith(words))

    def key(self, key):
        ActionChains(self.browser).send_keys(key).perform()

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def findings(self):
        """What axe finds that is serious or critical."""
        import axe_core_python

        if not self.browser.execute_script("return 'axe' in window"):
            script = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
            self.browser.execute_script(script)
        # The report's frame is another page, in a sandbox that no script of this one reaches.
        found = self.browser.execute_async_script(
            "axe.run(document, {iframes: false}).then(arguments[0], (error) => arguments[0]({error: String(error)}))"
        )
        return [
            f"{rule['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    yield Page(browser)
    browser.quit()


@contextmanager
def serving(station, port=0, access=None):
    """The address of a real server on the loopback."""
    running = server(create_app(station, access or Access(Tokens(station.folder / "tokens.json"))))
    with listen("127.0.0.1", port) as socket:
        thread = threading.Thread(target=running.run, args=([socket],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            running.end()
            thread.join()


@pytest.fixture
def station(tmp_path):
    with Station.open(tmp_path / "station", Settings(threads=1)) as opened:
        yield opened


def write_parts(folder):
    """A striped product with noise: parts to learn from, parts that come later, and one with a dark blot."""
    rng = np.random.default_rng(0)
    stripes = 120 + 60 * np.sin(np.arange(96) / 5)[:, None, None]
    folder.mkdir()
    for index in range(18):
        part = np.clip(stripes + rng.normal(0, 6, (96, 80, 1)) + np.array([10.0, 0, -10]), 0, 255)
        cv2.imwrite(str(folder / f"good-{index:02}.png"), part)
    cv2.circle(part, (40, 48), 16, (0, 0, 0), -1)
    defect, smudge = folder.with_name("blot.png"), folder.with_name("smudge.png")
    cv2.imwrite(str(defect), part)
    parts = sorted(folder.iterdir())
    part = cv2.imread(str(parts[0]))
    cv2.imwrite(str(smudge), cv2.rectangle(part, (20, 20), (60, 70), (230, 230, 230), -1))
    return parts[:12], parts[12:], defect, smudge


@pytest.mark.timeout(900)  # two fits, which give way to everything else that runs here
def test_a_product_is_taught_judged_answered_and_rolled_back(page, station, tmp_path):
    good, fresh, defect, smudge = write_parts(tmp_path / "parts")
    other = shutil.make_archive(str(tmp_path / "stripes"), "zip", tiny_model.write(tmp_path / "other"))
    with serving(station) as address:
        page.open(address)
        page.live()
        page.reads(".viewer", "Teach the station a product first")

        # Good images in, a fit watched to its end.
        page.key("3")
        page.one("#teach-files").send_keys("\n".join(map(str, good)))
        page.reads(".chosen", "12 images")
        page.one("#teach-name").send_keys("stripes")
        page.one(".teach summary").click()
        Select(page.one("#teach-size")).select_by_value("64")
        reject = page.one("#teach-reject")
        reject.clear()
        reject.send_keys("40")
        page.button("Learn from these images").click()
        page.wait(lambda: page.one(".stages .now").text)
        assert page.findings() == []
        page.browser.refresh()  # a job outlives the page
        page.reads(".job", "Learning stripes")
        page.reads(".job", "stripes, version 1, is learnt", 240)
        page.reads(".panel", "judges now")
        assert page.place == "#models"  # nobody asked to be taken elsewhere
        page.browser.execute_script("document.querySelector('.report').scrollIntoView()")
        page.browser.switch_to.frame(page.one(".report iframe"))
        page.wait(lambda: "stripes" in page.one("body").text)
        page.browser.switch_to.default_content()

        # A pass and a reject.
        inspector = station.inspector("stripes")
        passing = min(good, key=lambda path: station.look(inspector, station.decode(path.read_bytes())).score)
        page.go("line")
        page.post(f"/inspect?name={passing.name}", content=passing.read_bytes())
        page.reads(".verdict-word", "PASS")
        page.post("/inspect?name=blot.png", content=defect.read_bytes())
        page.reads(".verdict-word", "REJECT")
        page.reads(".verdict-facts", "blot.png")
        page.wait(lambda: page.all(".line image.heat") and page.all(".line .region"))
        assert page.one(".line .regions li button").text.startswith("1")
        page.reads(".rate", "50.0 %")
        page.reads(".rate", "1 of the last 2 parts")
        page.one("#inspect-file").send_keys(str(defect))
        page.reads(".verdict-facts", "Tried by hand: counts for no rate.")
        page.wait(lambda: len(page.all(".strip li a")) == 2)
        assert "1 of the last 2 parts" in page.one(".rate").text
        page.all(".strip a")[1].click()

        # The reject beside its nearest good picture, and what people say of both.
        page.reads(".detail .verdict-word", "REJECT")
        page.wait(lambda: len(page.all(".pair svg image")) == 3)
        assert "No. 1" in page.one(".pair figure:last-child figcaption").text
        page.key("d")
        page.wait(lambda: page.one(".answer.defect").get_attribute("aria-pressed") == "true")
        page.go("history/1")
        page.reads(".detail .part-name", passing.name)
        page.button("This was a defect").click()  # a slip of the finger
        page.wait(lambda: page.one(".answer.defect").get_attribute("aria-pressed") == "true")
        assert page.focused().startswith("This was a defect")
        page.button("Take it back").click()
        page.wait(lambda: page.one(".answer.defect").get_attribute("aria-pressed") == "false")
        assert station.store.get(1).answer is None
        assert page.focused().startswith("This was good")
        page.key("g")
        page.wait(lambda: page.one(".answer.good").get_attribute("aria-pressed") == "true")
        assert page.focused().startswith("This was good")
        page.one(".rows a[href='#history/1']").send_keys("u")
        page.wait(lambda: "was good" not in page.one(".rows").text)
        assert page.focused().startswith("pass")  # the row, though it was drawn anew
        station.answer(1, "good", "another tab")
        page.reads(".rows", "was good")
        page.wait(lambda: page.one(".answer.good").get_attribute("aria-pressed") == "true")
        page.key(Keys.ESCAPE)
        page.reads(".invitation", "Choose a part")
        assert page.focused().startswith("pass")
        Select(page.one("#answer")).select_by_value("defect")
        page.wait(lambda: [row.text.split("\n")[0] for row in page.all(".rows .row")] == ["reject"])
        assert [station.store.get(number).answer for number in (1, 2)] == ["good", "defect"]
        page.go("health")
        page.go("history")  # what was chosen is still so
        page.wait(lambda: [row.text.split("\n")[0] for row in page.all(".rows .row")] == ["reject"])
        assert Select(page.one("#answer")).first_selected_option.text == "was a defect"
        assert "chosen" in page.one(".filters").get_attribute("class")
        page.button("Clear").click()
        page.wait(lambda: len(page.all(".rows .row")) == 3)

        # A second version: tried, activated, and one step back.
        page.go("models")
        page.one("#model-zip").send_keys(other)
        page.reads(".panel", "Version 2")
        page.browser.find_element(By.LINK_TEXT, "Version 2").click()
        page.reads(".panel", "Try version 2")
        page.one("#try-file").send_keys(str(defect))
        page.reads(".tried", "reject")
        page.wait(lambda: page.all(".chart.wide .threshold"))
        before = page.one(".means").text
        page.one("#threshold").send_keys(Keys.ARROW_LEFT)
        page.wait(lambda: page.one(".means").text != before)
        assert "at most 50.0 % of good parts" in page.one(".means").text
        page.button("Activate").click()
        page.wait(lambda: station.registry.version("stripes").version == 2)
        page.button("Back to version 1").click()
        page.wait(lambda: station.registry.version("stripes").version == 1)
        assert station.store.count() == 3  # nothing that was tried is in the record
        # Somebody else changes what judges: it is seen, and what is being read stays.
        page.wait(lambda: "judges now" in page.row("Version 1").text)
        tried, place = page.one(".tried li"), page.place
        station.activate("stripes", 2, by="another", role="engineer")
        page.wait(lambda: "judges now" in page.row("Version 2").text and "Activate" in page.row("Version 1").text)
        station.rollback("stripes", by="another", role="engineer")
        page.wait(lambda: "judges now" in page.row("Version 1").text)
        assert (page.one(".tried li"), page.place) == (tried, place)

        # What people said becomes a candidate that is compared, activated, and taken back.
        page.go("line")
        for part in fresh:
            page.post(f"/inspect?name={part.name}", content=part.read_bytes())
        page.reads(".rate", "of the last 8 parts")
        page.go("models")
        page.button("New thresholds").click()
        page.reads(".panel", "May judge")
        page.reads(".panel", "1 part called a defect: reject")
        assert page.findings() == []
        page.button("Activate the candidate").click()
        page.reads(".panel", "Judges now, as version 3")
        page.wait(lambda: station.registry.version("stripes").version == 3)
        page.button("Back to version 1").click()
        page.wait(lambda: station.registry.version("stripes").version == 1)
        page.reads(".panel", "Was activated as version 3; version 1 judges now")

        # The slider's budget becomes one as well.
        page.wait(lambda: "Version 1" in (text := page.one(".panel .chosen").text) and "judges now" in text)
        page.wait(lambda: page.all(".chart.wide .threshold"))
        page.one("#threshold").send_keys(Keys.ARROW_LEFT)
        page.button("Make a candidate of it").click()
        page.reads(".panel", "Candidate: another budget")
        page.wait(lambda: page.one(".panel .state").text.endswith(("May judge", "Must not judge")))

        # One reject called good advises nothing; learnt anew it is all the same, with the settings of the fit.
        number = page.post("/inspect?name=smudge.png", content=smudge.read_bytes())["number"]
        assert station.answer(number, "good", "another tab").decision.verdict == "reject"
        page.reads(".panel", "1 false reject scores")
        assert "primary" in page.button("New thresholds").get_attribute("class")
        page.button("Learn anew").click()
        page.reads(".job", "Learning stripes")
        slider = page.one("#threshold")
        before = slider.get_attribute("value")
        page.reads(".job", "stripes, version 4, is learnt", 240)
        page.wait(lambda: page.one(".panel .state").text.endswith(("May judge", "Must not judge")), 120)
        assert "Version 4" in page.one(".panel table").text
        assert (page.one("#threshold"), slider.get_attribute("value"), page.place) == (slider, before, "#models")
        manifest = station.registry.load("stripes", 4).manifest
        assert (manifest.provenance.data_name, manifest.method.config["epochs"]) == ("stripes", 0)

        page.go("health")
        page.reads(".state.good", "Decides")
        page.reads(".drifts", "Nothing can be said yet")
        page.button("Verify the record").click()
        page.reads(".health", "As it was written, up to entry")
        actions = [audit.action for audit in station.store.audits()]
        first, later = (
            ["roll back", "activate", "roll back", "activate", "add model", "add model", "fit"],
            ["roll back", "activate", "add model"],
        )
        assert actions == ["add model", "candidate", "candidate", *later, "candidate", *first]

        for theme in ("light", "dark"):
            page.wait(lambda theme=theme: page.one("#theme").click() or theme in page.one("#theme").text.lower())
            for view in VIEWS:
                page.go(view if view != "history" else "history/2")
                page.wait(
                    lambda view=view: page.all(".pair svg image, .line image, .chart .threshold, .drifts article")
                )
                assert page.findings() == [], f"{view} in {theme}"
        assert page.errors() == []


def test_a_lost_connection_is_seen_at_once_and_found_again(page, station, tmp_path):
    station.add("part", tiny_model.write(tmp_path / "model"), by="test", role="engineer")
    grey = cv2.imencode(".png", np.full((32, 32, 3), 128, np.uint8))[1].tobytes()
    with serving(station) as address:
        page.open(address)
        page.live()
        station.decide(grey, name="before", source="http")
        page.reads(".verdict-facts", "before")
    page.reads("#notices", "Connection lost.")
    page.reads("#connection", "connection lost")
    assert page.findings() == []
    station.decide(grey, name="meanwhile", source="http")
    with serving(station, port=int(address.rpartition(":")[2])):
        page.live()
        page.reads(".verdict-facts", "meanwhile")
        assert page.one("#notices").text == ""
        page.key("p")
        page.reads("#pause", "Go on")
        station.decide(grey, name="paused", source="http")
        page.reads("#pause", "1 newer part")
        assert "meanwhile" in page.one(".verdict-facts").text
        page.key("p")
        page.reads(".verdict-facts", "paused")


def test_an_operator_enters_with_a_token_and_may_not_change_models(page, station, tmp_path):
    for name in ("first", "second"):
        score = 0.3 if name == "first" else 0.4
        model = tiny_model.write(tmp_path / name, image_scores=(0.1, 0.2, score))
        station.add("part", model, by="test", role="engineer")
    tokens = Tokens(station.folder / "tokens.json")
    token = tokens.add("operator", "Shift 2")
    with serving(station, access=Access(tokens, token_needed=True)) as address:
        page.open(address, "models")
        page.wait(lambda: page.one("#sign-in").get_attribute("open") is not None)
        assert page.findings() == []
        assert page.errors() == []
        page.one("#sign-in-token").send_keys("makel_00000000_wrong", Keys.ENTER)
        page.reads("#sign-in-problem", "not known here")
        page.one("#sign-in-token").clear()
        page.one("#sign-in-token").send_keys(token, Keys.ENTER)
        page.live()
        page.reads("#who", "Shift 2, operator")
        page.reads(".panel", "An engineer can activate a version.")
        assert not page.button("Activate").is_enabled()
        assert "Back to version" not in page.one(".panel").text  # the other one has never judged
        station.activate("part", 2, by="ada", role="engineer")
        assert not page.button("Back to version 1").is_enabled()
        page.button("Leave").click()
        page.wait(lambda: page.one("#sign-in").get_attribute("open") is not None)


def test_an_address_that_is_broken_says_so_and_leads_nowhere(page, station, tmp_path):
    station.add("part", tiny_model.write(tmp_path / "model"), by="test", role="engineer")
    grey = cv2.imencode(".png", np.full((32, 32, 3), 128, np.uint8))[1].tobytes()
    station.decide(grey, name="only", source="http")
    with serving(station) as address:
        for broken in ("%", "%E0%A4%A", "constructor", "__proto__/x", "nothing/1", "LINE"):
            page.open(address, broken)
            page.live()
            page.reads(".verdict-facts", "only")
            page.reads("#toasts", f"There is nothing at #{broken} here.")
            assert page.place == "#line"
        for broken, selector, said in (
            ("history/abc", ".detail", "There is no part abc"),
            ("history/0", ".detail", "There is no part 0"),
            ("history/1.5", ".detail", "There is no part 1.5"),
            ("history/7", ".detail", "has no decision number 7"),
            ("history/99999999999999999999", ".detail", "There is no part 999"),
            ("models/none", ".panel", "There is no model none."),
            ("models/part/9", ".panel", "part has no version 9."),
            ("models/part/x%2F1", ".panel", "part has no version x/1."),
            ("models/", ".panel", "judges now"),
            ("history/", ".detail", "Choose a part"),
        ):
            page.browser.execute_script("location.hash = arguments[0]", f"#{broken}")
            page.reads(selector, said)
        page.browser.execute_script("location.hash = '#%'")
        page.reads(".verdict-facts", "only")
        page.go("health")
        page.browser.execute_script("document.querySelector('.skip').click()")
        assert page.place == "#health"
        assert page.browser.execute_script("return document.activeElement.id") == "view"
        assert [message for message in page.errors() if "404" not in message] == []


def test_times_are_told_in_one_zone(page, station, tmp_path):
    station.add("part", tiny_model.write(tmp_path / "model"), by="test", role="engineer")
    grey = cv2.imencode(".png", np.full((32, 32, 3), 128, np.uint8))[1].tobytes()
    at = datetime.fromisoformat(station.decide(grey, source="http").decision.at)
    with serving(station) as address:
        page.browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kathmandu"})
        try:
            page.open(address, "history/1")
            there = at.astimezone(timezone(timedelta(hours=5, minutes=45)))
            page.reads(".row-time", f"{there:%H:%M:%S}")
            page.reads(".detail .facts", f"{there:%Y, %H:%M:%S} GMT+5:45")
            page.reads(".paging", "times in GMT+5:45")
            assert "UTC" not in page.one(".history").text
        finally:
            page.browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_a_fit_that_cannot_be_or_was_cut_off_says_so(page, tmp_path):
    texts = tmp_path / "good.zip"
    with zipfile.ZipFile(texts, "w") as archive:
        for index in range(50):
            archive.writestr(f"good/{index}.png", b"no image")
    with Station.open(tmp_path / "station", Settings(threads=1)) as station:
        with serving(station) as address:
            page.open(address, "models")
            page.live()
            chooser = page.one("#teach-files")
            assert set(chooser.get_attribute("accept").split(",")) == {".zip", *SUFFIXES}
            (tmp_path / "notes.txt").write_text("none")
            (tmp_path / "part.jfif").write_bytes(b"one")
            chooser.send_keys(f"{tmp_path / 'notes.txt'}\n{tmp_path / 'part.jfif'}")
            page.reads(".chosen", "1 image, 0.0 MB; 1 other file left out")
            page.one("#teach-name").clear()
            chooser.send_keys(str(texts))
            page.reads(".chosen", "good.zip")
            assert page.one("#teach-name").get_attribute("value") == ""  # good is what they are, not of what
            page.one("#teach-name").send_keys("stripes")
            page.button("Learn from these images").click()
            page.reads(".job", "the upload holds no image, whatever its names say, but 50 .png")
            page.go("line")
            page.go("models")
            assert page.one("#teach-name").get_attribute("value") == "stripes"
        folder = station.fitting.reserve()
        shutil.copytree(write_parts(tmp_path / "parts")[0][0].parent, folder / "stripes")
        told = {"name": "stripes", "n_images": 18, "settings": FitSettings(), "by": "test", "role": "engineer"}
        station.fitting.start(folder, folder / "stripes", **told)
    with Station.open(tmp_path / "station", Settings(threads=1)) as station, serving(station) as address:
        page.open(address, "models")
        page.reads(
            ".job", "stripes was not learnt: the station was stopped before it was learnt: send the images again"
        )
