"""The report page in headless Chromium: filter, opening a row, links to rows, layout, and nothing from outside."""

import json

import numpy as np
import pytest
from chromium import NAMES, Chromium, find_chromium
from report_runs import HOSTILE, error_line, estimate, evaluation_run, generation_run, judged_line

from jobs.report.page import write_report

WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")
NO_CHROMIUM = f"none of {', '.join(NAMES)} is installed; Debian's package is chromium"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason=NO_CHROMIUM),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of an evaluation with a hostile row and one that failed."""
    folder = tmp_path_factory.mktemp("run")
    lines = [
        judged_line(i, f"The sum is {2 * i + i % 2}.", str(2 * i), str(2 * i + i % 2), i % 2 == 0) for i in range(12)
    ]
    lines.append(error_line(12, "prompt_too_long", "the prompt has 99 tokens and max_model_len is 50", True))
    lines.append(judged_line(13, HOSTILE * 20, HOSTILE, HOSTILE, False, prompt="x" * 3000))
    return write_report(evaluation_run(folder, lines=lines, num=14, wrong=(0,) * 7))


@pytest.fixture(autouse=True)
def no_complaints(browser):
    """After each test: no script failed, the policy refused nothing, and nothing but the page was asked for."""
    yield
    problems, asked = browser.problems()
    assert problems == []
    assert all(address.startswith("file:///") and address.endswith(".html") for address in asked), asked


def shown(browser):
    """Numbers of the rows that are seen."""
    return browser.evaluate(
        "[...document.querySelectorAll('tr.row')].filter(e => e.offsetHeight)"
        ".map(e => e.querySelector('a').textContent)"
    )


def opened(browser):
    """Names of the rows whose details are seen."""
    return browser.evaluate("[...document.querySelectorAll('tr.detail')].filter(e => e.offsetHeight).map(e => e.id)")


def box(browser, selector):
    """Left, top, width and height of the first such element."""
    return browser.evaluate(
        f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        "return [r.x, r.y + scrollY, r.width, r.height] })()"
    )


def test_the_filter_keeps_the_rows_that_hold_all_words(browser, page):
    browser.open(page)
    assert len(shown(browser)) == 14
    browser.click("#filter")
    browser.type("SUM 11.")
    assert shown(browser) == ["5"]
    assert browser.evaluate("document.getElementById('found').textContent") == "1 of 14 rows"
    assert browser.evaluate("location.hash") == "#filter=SUM+11."
    browser.evaluate("document.getElementById('filter').select()")
    browser.type("max_model_len")
    assert shown(browser) == ["12"]  # words of a closed row count


@pytest.mark.parametrize(
    "choice, rows",
    [("wrong", ["1", "3", "5", "7", "9", "11", "13"]), ("right", ["0", "2", "4", "6", "8", "10"]), ("failed", ["12"])],
)
def test_rows_are_chosen_by_how_they_came_out(browser, page, choice, rows):
    browser.open(page)
    browser.evaluate(
        f"(() => {{ const e = document.getElementById('show'); e.value = '{choice}';"
        "e.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    assert shown(browser) == rows


def test_a_row_opens_and_closes_by_mouse_and_by_keyboard(browser, page):
    browser.open(page)
    assert opened(browser) == []
    browser.click("tr.row:nth-of-type(5) td.output")
    assert opened(browser) == ["row-2"]
    assert "The sum is 4." in browser.evaluate("document.querySelector('#row-2').innerText")
    link = "document.querySelector('a[href=\"#row-3\"]')"
    assert browser.evaluate(f"{link}.getAttribute('aria-expanded')") == "false"
    browser.evaluate(f"{link}.focus()")
    browser.press("Enter", "\r")
    assert opened(browser) == ["row-2", "row-3"]
    assert browser.evaluate(f"{link}.getAttribute('aria-expanded')") == "true"
    browser.press("Enter", "\r")
    assert opened(browser) == ["row-2"]


@pytest.mark.parametrize(
    "fragment, rows, details",
    [
        ("#row-7", 14, ["row-7"]),
        ("#filter=sum&show=wrong&row=7", 6, ["row-7"]),
        ("#filter=no+such+words", 0, []),
        ("#show=nonsense&row=99", 14, []),
        ("#filter=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", 1, []),
    ],
)
def test_an_address_leads_to_a_row_or_a_selection(browser, page, fragment, rows, details):
    browser.open(page, fragment)
    assert (len(shown(browser)), opened(browser)) == (rows, details)


def test_without_scripts_everything_is_there_and_a_link_opens_its_row(browser, page):
    browser.open(page, "#row-4", script=False)
    assert len(shown(browser)) == 14
    assert opened(browser) == ["row-4"]
    assert box(browser, "form.filter")[3] == 0
    text = browser.evaluate("document.body.innerText")
    for words in ("exact_match", "0.5000", "group 2", "123.4", "prompt_too_long", "What is 11 + 11?"):
        assert words in text
    browser.click('a[href="#row-6"]')
    assert opened(browser) == ["row-6"]


def test_hostile_text_is_shown_and_not_obeyed(browser, page):
    browser.open(page, "#row-13")
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.images.length") == 0
    text = browser.evaluate("document.querySelector('#row-13').innerText")
    assert "</script><script>alert(1)</script><img src=x onerror=alert(1)>" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_at_the_side(browser, page, width):
    browser.open(page, "#row-13", width=width)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    # whatever is wider scrolls within its own frame
    outside = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, thead, .unseen, svg') && "
        f"e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_a_narrow_page_puts_things_under_each_other_and_a_wide_one_side_by_side(browser, page):
    browser.open(page, width=1400)
    main = box(browser, "main")
    assert main[0] == pytest.approx((1400 - main[2]) / 2, abs=1)
    assert main[2] == 1240
    tiles = [box(browser, f".tile:nth-child({i})") for i in range(1, 6)]
    assert len({tile[1] for tile in tiles}) == 1
    prompt, output = (box(browser, f"tr.row td.{name}") for name in ("prompt", "output"))
    assert prompt[1] == output[1]
    assert output[0] == pytest.approx(prompt[0] + prompt[2], abs=1)

    browser.open(page, width=400)
    tiles = [box(browser, f".tile:nth-child({i})") for i in range(1, 6)]
    assert [tile[1] for tile in tiles] == sorted(tile[1] for tile in tiles)
    assert len({tile[1] for tile in tiles}) == 3
    prompt, output = (box(browser, f"tr.row td.{name}") for name in ("prompt", "output"))
    assert prompt[0] == output[0]
    assert output[1] >= prompt[1] + prompt[3]
    charts = [box(browser, f"figure:nth-child({i}) svg") for i in (1, 2)]
    assert charts[1][1] > charts[0][1] + charts[0][3]
    assert all(chart[2] > 300 for chart in charts)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_photograph_has_the_layout(browser, page, width, scheme):
    browser.open(page, width=width, height=1000, scheme=scheme)
    scale = 0.1
    pixels = browser.screenshot(scale=scale).astype(int).sum(axis=2) / 3
    assert pixels.shape == (100, width / 10)
    paper = np.median(pixels[:, 0])
    assert paper > 230 if scheme == "light" else paper < 40
    is_paper = np.abs(pixels - paper) < 3
    # margins left and right are blank, the column between them is not
    left, _, column, _ = (value * scale for value in box(browser, "main"))
    padding = 1 if width == 400 else 2
    margin = int(left + padding)
    assert is_paper[:, : max(margin, 1)].all()
    assert is_paper[:, -max(margin, 1) :].all()
    assert (~is_paper[:, margin : int(left + column)]).any(axis=0).mean() > 0.9
    # every tile of the summary is a card of another shade; between two of them there is paper
    for i in range(1, 6):
        x, y, w, h = (value * scale for value in box(browser, f".tile:nth-child({i})"))
        inside = is_paper[int(np.ceil(y)) + 1 : int(y + h) - 1, int(np.ceil(x)) + 1 : int(x + w) - 1]
        assert (~inside).mean() > 0.9, f"tile {i} at {x, y, w, h}"
    # a heading is ink on paper
    x, y, w, h = (value * scale for value in box(browser, "h1"))
    contrast = np.abs(pixels[int(y) : int(y + h) + 1, int(x) : int(x + 12)] - paper).max()
    assert contrast > 60


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_stand_out_from_what_is_behind_them(browser, page, scheme):
    browser.open(page, "#row-1", scheme=scheme)
    ratios = browser.evaluate(
        """(() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b };
        const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (c !== 'rgba(0, 0, 0, 0)') return c } return 'rgb(255, 255, 255)' };
        return [...document.querySelectorAll('p, a, dt, dd, th, td, pre, .score, .big, figcaption, summary')]
            .filter(e => e.offsetHeight && e.innerText).map(e => {
                const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x);
                return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)] }) })()"""
    )
    assert len(ratios) > 100
    assert min(ratios)[0] >= 4.5, min(ratios)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_choices_of_a_row_are_a_table_with_headers_at_any_width(browser, tmp_path, width):
    choices = [{"text": text, "logprob": -1.5, "num_tokens": 1, "is_greedy": False} for text in ("red", "blue")]
    line = judged_line(0, "red", 1, 0, False, choices=choices)
    browser.open(write_report(evaluation_run(tmp_path / "run", lines=[line], num=1)), "#row-0", width=width)
    head, cell = (box(browser, f"#row-0 table {name}:nth-child(2)") for name in ("thead th", "tbody td"))
    assert (head[0], head[2]) == (cell[0], cell[2])
    assert cell[1] == pytest.approx(head[1] + head[3], abs=2)
    assert box(browser, "#row-0 table tbody td")[2] >= 110


@pytest.mark.parametrize("width", WIDTHS)
def test_the_name_of_a_test_or_interval_stands_in_one_line(browser, tmp_path, width):
    scores = {
        "task": "generate",
        "groups": {},
        "metrics": {"exact_match": estimate(0.5, 0.3, 0.7, 9, higher_is_better=True)},
    }
    scores["metrics"]["exact_match"]["method"] = "clustered wilson"
    folders = [
        evaluation_run(tmp_path / name, wrong=wrong, scores=scores) for name, wrong in (("a", (1,)), ("b", (2,)))
    ]
    browser.open(write_report(*folders), width=width)
    heights = browser.evaluate("[...document.querySelectorAll('td.word')].map(e => e.closest('tr').offsetHeight)")
    assert len(heights) == 2
    assert max(heights) < 45


def test_a_long_prompt_with_examples_is_shown_by_its_end(browser, tmp_path):
    scores = {
        "task": "generate",
        "groups": {},
        "metrics": {"exact_match": estimate(0.5, 0.3, 0.7, 9, higher_is_better=True)},
    }
    scores["eval"] = {"few_shot": {"num": 40}}
    folders = []
    for name in "ab":
        line = judged_line(0, "x", "y", "x", name == "a", prompt="Q: one\nA: 1\n\n" * 40 + "Q: two\nA:")
        folders.append(evaluation_run(tmp_path / name, lines=[line], scores=scores))
    browser.open(write_report(*folders))
    frame = box(browser, "#pair-0 pre")
    text = box(browser, "#pair-0 pre span")
    assert text[3] > 5 * frame[3]
    assert text[1] + text[3] <= frame[1] + frame[3]


def test_a_generation_run_has_a_page_too(browser, tmp_path):
    browser.open(write_report(generation_run(tmp_path / "run")), "#show=failed")
    assert shown(browser) == ["6"]
    assert browser.evaluate("document.querySelectorAll('figure').length") == 5


def test_the_sides_of_a_comparison_stand_beside_each_other_where_there_is_room(browser, tmp_path):
    a, b = evaluation_run(tmp_path / "a", wrong=(1,)), evaluation_run(tmp_path / "b", wrong=(2,))
    path = write_report(a, b)
    browser.open(path, width=1400)
    left, right = (box(browser, f"#pair-1 .side:nth-child({i})") for i in (1, 2))
    assert left[1] == right[1]
    assert right[0] > left[0] + left[2]
    browser.open(path, width=400)
    left, right = (box(browser, f"#pair-1 .side:nth-child({i})") for i in (1, 2))
    assert left[0] == right[0]
    assert right[1] > left[1] + left[3]
    assert browser.evaluate("document.documentElement.scrollWidth") == 400
