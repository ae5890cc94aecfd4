"""The pictures of the page in docs/station: a station on made-up parts, photographed in Debian's Chromium.

    python benchmarks/station_pictures.py [--data DIR] [--out docs/station] [--all]

Needs chromium and chromium-driver beside makel[fit,station] and selenium. With --data, station and model are kept there
and found again by the next run. With --all, every view is taken in light, dark and on a tablet.
"""

from __future__ import annotations

import argparse
import io
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import makel
from makel.datasets import synthetic
from makel.station.access import Access, Tokens
from makel.station.service import create_app, listen, server
from makel.station.station import Station

REPOSITORY = Path(__file__).resolve().parent.parent
DESK, TABLET = (1280, 800), (820, 1180)
N_PARTS, DEFECT_EVERY = 160, 23
SIZE_PX = 320
SHOWN = ("line", "line_dark", "line_tablet", "history", "models", "health")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, help="folder to keep station and model in")
    arguments.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "station")
    arguments.add_argument("--all", action="store_true", help="every view, not only those the guide shows")
    given = arguments.parse_args()
    with TemporaryDirectory() as scratch:
        folder = given.data or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        with Station.open(folder / "station") as station:
            if not station.models():
                teach(station, folder)
            with serving(station) as address, chromium() as browser:
                photograph(browser, address, station, given.out, given.all)


def teach(station, folder):
    """Two products, and a shift of parts of one of them."""
    flange, weave = folder / "flange", folder / "weave"
    synthetic.write(flange, n_fit=100, n_good=1, n_defect=1, size_px=SIZE_PX)
    synthetic.write(weave, product="weave", n_fit=40, n_good=1, n_defect=1, size_px=SIZE_PX)
    for name, good, settings in (("flange", flange, {}), ("weave", weave, {"false_reject": 0.1})):
        makel.fit(good, folder / f"{name}-model", size=128, **{"false_reject": 0.05, **settings})
        station.add(name, folder / f"{name}-model", by="setup", role="engineer")
    makel.fit(flange, folder / "second", size=128, seed=1, false_reject=0.05)
    station.add("flange", folder / "second", by="setup", role="engineer")
    kinds = synthetic.PRODUCTS["flange"]
    for index in range(N_PARTS):
        is_defect = index % DEFECT_EVERY == DEFECT_EVERY - 2
        kind = kinds[index // DEFECT_EVERY % len(kinds)] if is_defect else "good"
        picture, _ = synthetic.render("flange", np.random.default_rng([7, index]), kind=kind, size_px=SIZE_PX)
        station.decide(png(picture), model="flange", name=f"F-{41200 + index}", source="http")
    for index in range(12):
        picture, _ = synthetic.render("weave", np.random.default_rng([8, index]), size_px=SIZE_PX)
        station.decide(png(picture), model="weave", name=f"W-{index + 1:03}", source="http")


def png(picture):
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


@contextmanager
def serving(station):
    running = server(create_app(station, Access(Tokens(station.folder / "tokens.json"))))
    with listen("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=running.run, args=([socket],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            running.end()
            thread.join()


@contextmanager
def chromium():
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "force-device-scale-factor=1"):
        options.add_argument(f"--{flag}")
    browser = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    try:
        yield browser
    finally:
        browser.quit()


def photograph(browser, address, station, out, is_all):
    rejects = [each for each in station.store.find(limit=1000) if each.decision.verdict == "reject"]
    shots = (
        # name, window, theme, address, what has to be there
        ("line", DESK, "light", "line", ".line .viewer image.heat"),
        ("line_dark", DESK, "dark", "line", ".line .viewer image.heat"),
        ("line_tablet", TABLET, "light", "line", ".line .viewer image.heat"),
        ("history", DESK, "light", f"history/{rejects[1].number}", ".pair figure:nth-child(2) svg image"),
        ("history_dark", DESK, "dark", f"history/{rejects[1].number}", ".pair figure:nth-child(2) svg image"),
        ("history_tablet", TABLET, "light", f"history/{rejects[1].number}", ".pair figure:nth-child(2) svg image"),
        ("models", DESK, "light", "models/flange", ".chart .threshold"),
        ("models_dark", DESK, "dark", "models/flange", ".chart .threshold"),
        ("models_tablet", TABLET, "light", "models/flange", ".chart .threshold"),
        ("health", DESK, "light", "health", ".drifts .chart .mark"),
        ("health_dark", DESK, "dark", "health", ".drifts .chart .mark"),
        ("health_tablet", TABLET, "light", "health", ".drifts .chart .mark"),
    )
    browser.get(address)
    defect, _ = synthetic.render("flange", np.random.default_rng([9, 3]), kind="scratch", size_px=SIZE_PX)
    good, _ = synthetic.render("flange", np.random.default_rng([9, 4]), size_px=SIZE_PX)
    coming = iter(((defect, "F-41360"), (good, "F-41361"), (good, "F-41362")))
    for name, window, theme, view, wanted in shots:
        if name not in SHOWN and not is_all:
            continue
        browser.set_window_size(*window)
        # The window's frame is not the page's: this is.
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": window[0], "height": window[1], "deviceScaleFactor": 1, "mobile": False},
        )
        browser.execute_script(
            "localStorage.setItem('makel-theme', arguments[0]); localStorage.setItem('makel-line-model', 'flange')",
            theme,
        )
        browser.get(f"{address}/#{view}")
        browser.refresh()
        wait = WebDriverWait(browser, 30)
        wait.until(lambda it: it.find_elements(By.CSS_SELECTOR, ".connection.live"))
        if name.startswith("line"):
            part, serial = next(coming)
            station.decide(png(part), model="flange", name=serial, source="http")
        wait.until(lambda it, wanted=wanted: it.find_elements(By.CSS_SELECTOR, wanted))
        time.sleep(0.7)  # until the last picture has faded in
        shrink(browser.get_screenshot_as_png(), out / f"{name}.png")
        print(name, (out / f"{name}.png").stat().st_size, flush=True)


def shrink(screenshot, target):
    """Fewer colours: a page of grey and three hues looks the same, and takes a third."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        target, optimize=True
    )


if __name__ == "__main__":
    main()
