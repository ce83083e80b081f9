"""The page in Chromium: it draws without an error, and zoom, sort and toggles do what they say."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cspsched.errors import CspschedError
from cspsched.referee.history import History, follow
from cspsched.referee.metrics import Metrics
from cspsched.report.html import Band, Section, lanes, page, write_page
from cspsched.report.html.template import TEMPLATES
from cspsched.report.table import numbers
from cspsched.simulate import simulate
from cspsched.studies.binding import binding_limits
from tests.support.comparisons import long_comparison, tight_comparison
from tests.support.kernel_cases import draw_case

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")

BANDS = Section(
    title="Over time", x=[1, 2, 3], bands=[Band(label="vllm", at_least=[0, 1, None], at_most=[1, 2, 3])]
)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: few requests, many, and none that is drawn."""
    folder = tmp_path_factory.mktemp("pages")
    tight = tight_comparison()
    found = {
        "tight": write_page(tight, folder / "tight.html", sections=[BANDS]),
        "long": write_page(long_comparison(), folder / "long.html"),
        "bare": folder / "bare.html",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "MOST_ENTRIES", 1)
        found["bare"].write_text(page(tight), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with playwright.sync_playwright() as driver:
        # A container has no sandbox of its own; the page is ours.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, files: dict[str, Path]) -> Iterator[Open]:
    """Opens a page when it is drawn; at the end nothing may have been complained of or loaded."""
    told: list[str] = []
    contexts = []

    def open_page(name: str = "tight", *, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        shown = context.new_page()
        shown.set_default_timeout(20_000)
        shown.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        shown.on("pageerror", lambda error: told.append(str(error)))
        address = files[name].as_uri()
        shown.on("request", lambda request: told.append(request.url) if request.url != address else None)
        shown.goto(address)
        shown.wait_for_selector("html[data-ready=yes]")
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def view(shown: Any) -> tuple[float, float]:
    """The range of time that is shown, once it is drawn."""
    shown.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    element = shown.locator("#schedules")
    return float(element.get_attribute("data-from-ns")), float(element.get_attribute("data-to-ns"))


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for some seconds until something holds; the page forbids the driver's own way, an `eval`."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end


def inked(shown: Any, selector: str) -> int:
    """Pixels of a canvas that are painted."""
    return shown.locator(selector).first.evaluate(
        """(canvas) => {
            const copy = new OffscreenCanvas(canvas.width, canvas.height);
            const pen = copy.getContext("2d", { willReadFrequently: true });
            pen.drawImage(canvas, 0, 0);
            const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
            return pixels.filter((value, k) => k % 4 === 3 && value > 0).length;
        }"""
    )


@pytest.mark.parametrize("name", ["tight", "long", "bare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_page_is_drawn_without_an_error(opened, name, scheme, width):
    """At 1280 and 360 pixels, light and dark: no error, nothing loaded, nothing wider than the screen."""
    shown = opened(name, width=width, scheme=scheme)
    wide = shown.evaluate("document.documentElement.scrollWidth")
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", paper)[0])

    assert wide <= width
    assert (red > 200) == (scheme == "light")
    assert shown.locator("#curves canvas").count() == 3
    if name != "bare":
        assert inked(shown, "canvas.lanes") > 1000
        assert inked(shown, "canvas.strip") > 1000
        assert inked(shown, "[data-memory] canvas") > 1000


DERIVED = """(data) => {
    const requests = { ...data.requests, arrivalNs: summed(data.requests.arrival_ns) };
    const one = new Schedule(data.schedules[0], requests);
    const entries = [];
    for (let j = 0; j < one.startNs.length; j++) {
        for (const i of one.entriesOf(j).keys()) {
            const { phase, tokens, kv } = one.entry(i, j);
            entries.push([j, i, tokens, kv, phase]);
        }
    }
    const resident = one.startNs.map(() => 0);
    for (const [, first, end] of one.stays) for (let j = first; j < end; j++) resident[j] += 1;
    return { entries, resident: [...resident], tokens: [...one.tokens], last: [...one.lastNs] };
}"""


@pytest.mark.parametrize("name", ["vllm", "sarathi", "vllm-v0 swap", "fastserve swap"])
def test_script_derives_what_the_referee_derives(browser, name):
    """From runs and evictions: c, m and phase of every entry, residents of every batch, last tokens."""
    shown = browser.new_page()
    script = "".join(
        (TEMPLATES / "scripts" / file).read_text(encoding="utf-8") for file in ("data.js", "schedule.js")
    )
    for history in histories(name):
        schedule, metrics = history.schedule, Metrics(history=history)
        one = lanes.Drawn(
            name=name, is_best=False, is_policy=True, metrics=metrics,
            runs=lanes.Runs.of(history), binding=binding_limits(history),
        )  # fmt: skip
        data = lanes.schedules_json(history.instance, [one], {}, None)
        told = shown.evaluate(f"(data) => {{ {script}; return ({DERIVED})(data); }}", data)
        columns = (
            schedule.batch_of_entry, schedule.request, schedule.tokens, history.kv_after, history.decodes
        )  # fmt: skip
        expected = {(j, i): (c, m, d) for j, i, c, m, d in zip(*map(list, columns), strict=True)}
        phases = {(j, i): phase for j, i, _, _, phase in told["entries"]}

        assert {(j, i): (c, m, phase == "decode") for j, i, c, m, phase in told["entries"]} == expected
        assert {key for key, phase in phases.items() if phase == "refill"} == refills(history)
        assert told["tokens"][:-1] == history.features.tokens.tolist()
        assert told["last"] == (metrics.latency_ns + metrics.arrival_ns).tolist()
        assert told["resident"] == residents(history)
    shown.close()


def histories(name: str) -> list[History]:
    """Of random instances on which a policy preempts."""
    found = []
    for seed in range(40):
        case = draw_case(name, seed)
        if case is None:
            continue
        try:
            schedule = simulate(*case).schedule
        except CspschedError:
            continue
        if schedule.num_preemptions and not schedule.uses_prefix_cache:
            found.append(follow(case[0], schedule))
    assert found
    return found


def refills(history: History) -> set[tuple[int, int]]:
    """Prefills of requests whose KV cache was lost, and that have generated nothing since."""
    schedule = history.schedule
    evictions = list(
        zip(schedule.evicted_request, schedule.evicted_batch, schedule.evicted_to_host, strict=True)
    )
    found = set()
    refilling: set[int] = set()
    for j, i, generates in zip(schedule.batch_of_entry, schedule.request, history.generates, strict=True):
        before = schedule.batch_of_entry[(schedule.request == i) & (schedule.batch_of_entry < j)]
        since = before.max(initial=-1)
        if any(one == i and since < batch <= j and not to_host for one, batch, to_host in evictions):
            refilling.add(i)
        if i in refilling:
            found.add((j, i))
        if generates:
            refilling.discard(i)
    return found


def residents(history: History) -> list[int]:
    """Requests that hold KV entries on the device in each batch."""
    schedule, held, found = history.schedule, set(), []
    for j in range(schedule.num_batches):
        held -= set(schedule.evicted_request[schedule.evicted_batch == j].tolist())
        held |= set(schedule.restored_request[schedule.restored_batch == j].tolist())
        entries = slice(schedule.first_entry[j], schedule.first_entry[j + 1])
        held |= set(schedule.request[entries].tolist())
        found.append(len(held))
        held -= set(schedule.request[entries][history.finishes[entries]].tolist())
    return found


def test_buttons_and_keys_zoom_and_move(opened):
    """Plus halves or so, minus undoes it, arrows move by a part, All and 0 show everything."""
    shown = opened("long")
    whole = view(shown)
    press = {
        name: shown.locator(f"[data-do={name}]").click for name in ("in", "out", "left", "right", "reset")
    }
    press["in"]()
    near = view(shown)
    press["right"]()
    later = view(shown)
    press["left"]()
    press["out"]()

    assert near[1] - near[0] < 0.7 * (whole[1] - whole[0])
    assert later[0] > near[0]
    assert later[1] - later[0] == pytest.approx(near[1] - near[0])
    assert view(shown) == pytest.approx(whole)
    shown.locator("[data-surface]").focus()
    shown.keyboard.press("+")
    assert view(shown) == pytest.approx(near)
    shown.keyboard.press("ArrowRight")
    assert view(shown) == pytest.approx(later)
    shown.keyboard.press("End")
    assert view(shown)[1] == whole[1]
    shown.keyboard.press("0")
    assert view(shown) == whole
    press["in"]()
    press["reset"]()
    assert view(shown) == whole


def test_wheel_zooms_where_the_pointer_is(opened):
    """Without focus the wheel scrolls the page; with Ctrl, or once clicked, the time below stays in place."""
    shown = opened("long")
    whole = view(shown)
    canvas = shown.locator("canvas.lanes").first

    def wheel() -> None:
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        shown.mouse.move(box["x"] + 62, box["y"] + 40)
        shown.mouse.wheel(0, -100)

    wheel()
    assert view(shown) == whole
    shown.locator("[data-surface]").focus()
    wheel()
    wait_until(lambda: view(shown)[1] < 0.9 * whole[1])
    zoomed = view(shown)

    assert zoomed[0] == pytest.approx(whole[0], abs=whole[1] / 100)


def test_drag_zooms_to_what_it_spans_and_shift_moves(opened):
    """From a fourth to a half of the axis; Shift and drag moves it back by as much as the pointer goes."""
    shown = opened("long")
    whole = view(shown)[1]
    canvas = shown.locator("canvas.lanes").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    wide = box["width"] - 62 - 14
    places = [box["x"] + 62 + share * wide for share in (0.25, 0.5)]

    def drag(start: float, end: float) -> None:
        shown.mouse.move(start, box["y"] + 50)
        shown.mouse.down()
        shown.mouse.move((start + end) / 2, box["y"] + 50)
        shown.mouse.move(end, box["y"] + 50)
        shown.mouse.up()

    drag(*places)
    assert view(shown) == pytest.approx((whole / 4, whole / 2), abs=whole / 200)
    shown.keyboard.down("Shift")
    drag(*places)
    shown.keyboard.up("Shift")
    assert view(shown) == pytest.approx((whole * 3 / 16, whole * 7 / 16), abs=whole / 100)
    shown.mouse.dblclick(places[0], box["y"] + 50)
    assert view(shown) == (0, whole)


def test_pointer_tells_the_entry_below_it(opened):
    """In the first batch of the lower schedule r0 is prefilled; the words have its c and m."""
    shown = opened()
    history = tight_comparison().rows[0].metrics.history
    assert history.schedule.request[0] == 0
    canvas = shown.locator("canvas.lanes").nth(1)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    end = view(shown)[1]
    middle = (history.schedule.start_ns[0] + history.schedule.end_ns[0]) / 2
    shown.mouse.move(box["x"] + 62 + (box["width"] - 76) * middle / end, box["y"] + 5)
    said = shown.locator("[data-said]").inner_text()

    assert "request r0" in said
    assert "vllm: batch 0" in said
    tokens = history.schedule.tokens[0]
    assert f"prefill c {tokens} m {tokens}" in said
    assert f"{history.features.tokens[0]} of 8,192 tokens" in said
    shown.locator("[data-surface]").focus()
    shown.keyboard.press("]")
    assert "vllm: batch 1" in shown.locator("[data-said]").inner_text()


def test_first_difference_is_marked_and_found(opened):
    """The button goes to the batch that the numbers name; another schedule has another one, or none."""
    shown = opened("long")
    comparison = long_comparison()
    drawn = lanes.drawn_schedules(comparison)
    batch = lanes.first_differences(drawn)[0, 1]
    start_ns = [int(one.schedule.start_ns[batch]) for one in drawn[:2]]
    shown.locator("[data-do=difference]").click()
    found = view(shown)

    assert f"in batch {batch:,}: tokens of " in shown.locator("[data-difference]").inner_text()
    assert found[0] <= min(start_ns) <= max(start_ns) <= found[1]
    assert found[1] - found[0] < 0.2 * drawn[0].schedule.end_ns[-1]
    assert shown.locator("[data-mark]:visible").count() == 2
    shown.locator("[data-panel='1'] select").select_option(index=0)
    wait_until(lambda: "have the same entries" in shown.locator("[data-difference]").inner_text())
    assert shown.locator("[data-mark]:visible").count() == 0


def test_headings_sort_numbers_as_numbers(opened):
    """By click and by Enter, up and down; the row of bounds stays at the end."""
    shown = opened("long")
    comparison = long_comparison()
    names = [row.policy for row in comparison.rows]
    heading = shown.locator("table.sortable th", has_text="preemptions")
    column = [row[-4] for row in numbers(comparison)]
    rising = [name for _, name in sorted(zip(column, names, strict=True))]
    policies = "table.sortable tbody th"

    heading.locator("button").click()
    assert shown.locator(policies).all_inner_texts() == rising
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").focus()
    shown.keyboard.press("Enter")
    assert shown.locator(policies).all_inner_texts() == rising[::-1]
    assert heading.get_attribute("aria-sort") == "descending"
    shown.locator("table.sortable th button", has_text="policy").click()
    assert shown.locator(policies).all_inner_texts() == sorted(names)
    assert heading.get_attribute("aria-sort") == "none"


def test_toggles_change_what_they_name(opened):
    """Dark and light, a curve of the legend, and the whole capacity; each says whether it is pressed."""
    shown = opened()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = shown.evaluate(paper)
    shown.locator("#theme").click()
    dark = shown.evaluate(paper)
    key = shown.locator("#curves .key").first
    before = inked(shown, "#curves canvas")
    key.click()
    view(shown)
    capacity = shown.locator("[data-toggle=isWhole]")
    pressed = capacity.get_attribute("aria-pressed")
    capacity.click()

    assert dark != light
    assert shown.locator("#theme").get_attribute("aria-pressed") == "true"
    assert key.get_attribute("aria-pressed") == "false"
    assert inked(shown, "#curves canvas") < before
    assert capacity.get_attribute("aria-pressed") != pressed
    shown.locator("#theme").click()
    assert shown.evaluate(paper) == light


def test_paper_is_light_and_has_no_controls(opened):
    """What is printed from a dark screen is light; tables are whole and buttons are gone."""
    shown = opened(scheme="dark")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.emulate_media(media="print", color_scheme="dark")
    colour = shown.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")

    assert colour == "rgb(255, 255, 255)"
    assert not shown.locator(".tools").is_visible()
    assert shown.locator(".verdict").is_visible()
