"""`report.html`: everything of the leaderboard and more on one page that loads nothing; looked at in a browser too."""

import base64
import html
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.benchmark.pictures import MAPS, PICTURES, SHARED, THUMBNAILS, file_name, save_map
from invdiff.benchmark.store import Store
from invdiff.benchmark.summary import rows_by_image, summarise
from invdiff.io import write_image
from invdiff.report import gallery as module
from invdiff.report.leaderboard import columns
from invdiff.report.page import page
from invdiff.scores.of_images import COVERAGES

EVIL = "<script>alert('x')</script>&\"'"
NAMES = ("cat", "dog")
PSNR = {"dps": 20.0, "daps": 24.0, EVIL: 22.0, "bold": 9.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four samplers on a task, one of them at a budget too; two images with pictures; one sampler that cannot be."""
    store = Store(tmp_path)
    store.open()
    shared = {"operator": {"_target_": "x.Blur", "std": 2.0}, "noise": {"_target_": "x.Noise"}}
    shared |= {"prior": {"name": f"digits{EVIL}"}, "precision": "auto", "invdiff": "1", "num_samples": 2, "seed": 0}
    fit = {"steps": 7, "run": "at100", "reason": None, "kind": "calls", "amount": 100.0}
    for k, (sampler, psnr) in enumerate([*PSNR.items(), ("dps", 19.0)]):
        run = "at100" if k == len(PSNR) else f"run{k}"
        record = {"run": run, "sampler": sampler, "operator": f"blur{EVIL}", "task": "t", "reason": None}
        record |= {"fits": {"100 network calls": fit} if k == 0 else {}, "fitted": run == "at100"}
        store.write_record(record | {"settings": {"sampler": {"class": sampler}, **shared}})
        store.write_config(run, {"samplers": [sampler], "input": EVIL, "num_samples": 2})
        for i, name in enumerate(NAMES):
            row = {"run": run, "sampler": sampler, "operator": "blur", "image": i, "image_key": "k", "name": name}
            row |= {"created": datetime(2026, 1, 1, tzinfo=UTC), "notes": json.dumps({"lpips": EVIL})}
            row |= {"forwards": 10.0 * (k + 1), "vjps": 0.0, "operator_calls": 1.0, "seconds": 0.5 + k}
            row |= {"vjp_weight": 1.0, "psnr_mean": psnr + 1, "baseline_psnr": 12.0, "misfit": 1.0}
            row |= {"energy": (30 - psnr + i) / 100, "crps": 0.01, "spread_error": 0.8, "rmse_mean": 0.1}
            row |= {"invdiff": "1", "git_revision": "abc"}
            row |= dict.fromkeys(COVERAGES, 0.4)
            store.append([row | {"sample": s, "psnr": psnr + i} for s in range(2)])
            draw_pictures(store.folder, run, i, size=(12, 9), seed=k)
    record = {"run": "none", "sampler": "no", "operator": "blur", "task": "t", "reason": f"no, {EVIL}", "fits": {}}
    store.write_record(record | {"fitted": False, "settings": {"sampler": {"class": "no"}, **shared}})
    return store


def draw_pictures(folder: Path, run: str, i: int, *, size: tuple[int, int], seed: int = 0) -> None:
    (folder / THUMBNAILS).mkdir(exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    for what in PICTURES:
        path = folder / THUMBNAILS / file_name(run, i, what)
        if what in MAPS:
            save_map(0.1 * torch.rand(*size, generator=rng), path)
        else:
            write_image(path, torch.rand(3, *size, generator=rng))


def page_of(store: Store) -> str:
    return page(store, summarise(store), rows_by_image(store))


class Reader(HTMLParser):
    """Tags with their attributes, and the words of every tag that was asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, cls: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and cls in (a.get("class") or "").split(" ")]


# -- what is on it -----------------------------------------------------------------------------------------------------


def test_it_says_what_the_leaderboard_says(store: Store) -> None:
    text = " ".join(" ".join(Reader(page_of(store)).words).split())
    comparisons = summarise(store)
    assert [c.budget for c in comparisons] == [None, "100 network calls"]
    for comparison in comparisons:
        for standing in comparison.standings:
            if not standing.images:
                assert f"{standing.label}: {standing.reason}" in text
                continue
            for write in columns(comparison).values():
                for word in re.split(" ± | / ", write(standing).replace("**", "")):
                    assert word in text
    assert "first guess , without a prior" in text
    assert "coverage" not in text, "scores have the headings of the leaderboard"
    assert "0.40 / 0.85" in text
    assert "energy score, lower is better" in text
    assert "energy 0.0600, mean 25.0 dB" in text
    sorted_columns = [a for a in Reader(page_of(store)).all("th", "number") if "aria-sort" in a]
    assert [a["aria-sort"] for a in sorted_columns] == ["ascending"] * 2, "one column of each table"


def test_it_loads_nothing(store: Store) -> None:
    text = page_of(store)
    found = Reader(text)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "data", "action", "srcset", "poster", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    assert not re.search(r"https?://|@import|url\(", text), "not even named"
    policy = [a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def test_whatever_a_user_names_is_escaped(store: Store) -> None:
    text = page_of(store)
    assert "<script>alert" not in text
    assert len(Reader(text).all("script")) == 1
    assert text.count(html.escape("<script>alert(")) >= 20, "label, operator, prior, reasons, notes and commands"


def test_every_row_has_its_command_and_configuration(store: Store) -> None:
    found = Reader(page_of(store))
    commands = [a["data-copy"] for a in found.all("button", "copy") if "data-copy" in a]
    runs = {f"run{k}" for k in range(len(PSNR))} | {"at100"}
    assert {tuple(shlex.split(command or "")) for command in commands} == {
        ("invdiff", "benchmark", f"--config-dir={store.records}", f"--config-name={run}", "images=2") for run in runs
    }
    assert "".join(found.words).count("num_samples: 2\n") == len(runs)
    assert {a["id"] for a in found.all("details", "again")} == {f"again-{run}" for run in runs}
    assert {a["href"] for a in found.all("a") if str(a["href"]).startswith("#again-")} == {f"#again-{r}" for r in runs}


def test_a_run_without_a_configuration(store: Store) -> None:
    for path in store.records.glob("*.yaml"):
        path.unlink()
    text = page_of(store)
    assert "This run has no configuration" in text
    assert "data-copy" not in text
    assert "x.Blur" in text, "its settings are there"


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open()
    assert "Nothing has been computed yet" in page_of(store)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_every_picture_is_there(store: Store) -> None:
    images = Reader(page_of(store)).all("img", "pixels")
    drawn = [a for a in images if a.get("src")]
    runs = len(PSNR) + 1
    assert len(drawn) == len(NAMES) * (len(SHARED) + runs * (len(PICTURES) - len(SHARED)))
    assert {(a["width"], a["height"]) for a in drawn} == {("9", "12")}


def test_maps_of_all_samplers_have_one_scale(store: Store) -> None:
    """The one with half the error is half as bright."""
    for run, share in (("run0", 0.2), ("run1", 0.1)):
        for what in MAPS:
            save_map(torch.full((12, 9), share), store.folder / THUMBNAILS / file_name(run, 0, what))
    levels = {}
    for a in Reader(page_of(store)).all("img", "pixels"):
        if a.get("alt") in ("error of dps", "error of daps"):
            data = base64.b64decode(str(a["src"]).partition(",")[2])
            levels.setdefault(a["alt"], np.asarray(Image.open(io.BytesIO(data))))
    assert int(levels["error of dps"][0, 0]) == pytest.approx(2 * int(levels["error of daps"][0, 0]), abs=2)


def test_damaged_and_missing_pictures_are_pictures_less(store: Store) -> None:
    whole = len(Reader(page_of(store)).all("img", "pixels"))
    folder = store.folder / THUMBNAILS
    (folder / file_name("run0", 0, "mean")).write_bytes(b"\x89PNG half a pic")
    (folder / file_name("run0", 0, "std")).write_bytes(b"")
    (folder / file_name("run0", 0, "error")).unlink()
    assert len(Reader(page_of(store)).all("img", "pixels")) == whole - 3
    shutil.rmtree(folder)
    assert "Pictures" not in page_of(store)


def test_a_page_does_not_grow_without_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    text = page_of(store)
    assert "cat" in text
    assert "The pictures of 1 more image(s) are in thumbnails/" in text


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is in PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser: Any, store: Store) -> Iterator[Callable[..., Any]]:
    """`look(width, height)` opens the page; what it asks the network for, or throws, fails the test."""
    path = store.folder / "report.html"
    path.write_text(page_of(store))
    errors: list[str] = []
    opened = []

    def call(width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        opened.append(context)
        shown = context.new_page()
        shown.set_default_timeout(10_000)
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        own = path.as_uri()
        shown.on("request", lambda r: None if r.url.startswith(("data:", own)) else errors.append(r.url))
        shown.goto(own)
        return shown

    yield call
    for context in opened:
        context.close()
    assert errors == []


def order(shown: Any) -> list[str]:
    return [words.strip() for words in shown.locator(".board").first.locator("tbody th").all_inner_texts()]


def test_tables_are_sorted_by_click_and_by_key(look: Callable[..., Any]) -> None:
    shown = look()
    headers = shown.locator(".board").first.locator("thead th")
    assert order(shown) == ["daps", EVIL, "dps", "bold"]
    by = {words.split("\xa0")[0].strip(): k for k, words in enumerate(headers.all_inner_texts())}
    assert headers.nth(by["energy score"]).get_attribute("aria-sort") == "ascending"
    headers.nth(by["PSNR of a sample"]).locator("button").click()
    assert order(shown) == ["bold", "dps", EVIL, "daps"], "9 before 20: as numbers, not as words"
    assert headers.nth(by["PSNR of a sample"]).get_attribute("aria-sort") == "ascending"
    assert headers.nth(by["energy score"]).get_attribute("aria-sort") is None
    headers.nth(by["seconds"]).locator("button").focus()
    shown.keyboard.press("Enter")
    assert order(shown) == ["bold", EVIL, "daps", "dps"]
    assert headers.nth(by["seconds"]).get_attribute("aria-sort") == "descending"
    assert headers.nth(by["PSNR of a sample"]).get_attribute("aria-sort") is None


def test_pictures_are_zoomed_and_flipped_at_the_same_crop(look: Callable[..., Any]) -> None:
    shown = look()
    shown.locator('.gallery:not(.off) .open[data-what="sample"]').first.click()
    viewer, image = shown.locator("#viewer"), shown.locator("#viewer .frame img")
    assert viewer.is_visible()
    assert image.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    shown.keyboard.press("+")
    shown.mouse.move(640, 400)
    shown.mouse.down()
    shown.mouse.move(580, 350)
    shown.mouse.up()
    crop = image.evaluate("e => e.style.transform")
    assert re.fullmatch(r"scale\(2\) translate\(-3\d(\.\d+)?%, -2\d(\.\d+)?%\)", crop), crop

    first = image.get_attribute("src")
    title = shown.locator("#viewer-title")
    assert "daps, own settings, sample" in title.inner_text()
    shown.keyboard.press("ArrowRight")
    assert EVIL in title.inner_text()
    assert image.get_attribute("src") != first
    assert image.evaluate("e => e.style.transform") == crop, "the crop stays"
    shown.locator('[data-do="previous"]').click()
    assert image.get_attribute("src") == first
    shown.keyboard.press("ArrowDown")
    assert "daps, own settings, mean" in title.inner_text()
    shown.locator("#viewer-columns button", has_text="truth").click()
    assert title.inner_text().endswith("cat · truth")
    assert image.evaluate("e => e.style.transform") == crop
    shown.keyboard.press("Escape")
    assert not viewer.is_visible()


def test_one_image_at_a_time(look: Callable[..., Any]) -> None:
    shown = look()
    assert [g.is_visible() for g in shown.locator(".gallery").all()] == [True, False]
    shown.locator(".tab", has_text="dog").click()
    assert [g.is_visible() for g in shown.locator(".gallery").all()] == [False, True]
    shown.emulate_media(media="print")
    assert [g.is_visible() for g in shown.locator(".gallery").all()] == [True, True]
    assert not shown.locator(".tab").first.is_visible()


def test_commands_are_copied(look: Callable[..., Any]) -> None:
    shown = look(permissions=["clipboard-read", "clipboard-write"])
    row = shown.locator(".board").first.locator("tbody tr").first
    row.locator(".copy").click()
    row.locator(".copied").wait_for()
    copied = shown.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"invdiff benchmark --config-dir=\S+/runs --config-name=run1 images=2", copied)
    row.locator("a").click()
    assert shown.locator("#again-run1 .command").is_visible()


def test_only_tables_scroll_sideways(look: Callable[..., Any]) -> None:
    for width in (320, 390, 1280):
        shown = look(width, 844)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        if width < 1280:
            assert shown.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))")


def test_dark_where_the_reader_wants_it(look: Callable[..., Any]) -> None:
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")):
        assert look(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor") == ground


def test_it_prints(look: Callable[..., Any]) -> None:
    shown = look()
    data = shown.pdf(prefer_css_page_size=True)
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 10
