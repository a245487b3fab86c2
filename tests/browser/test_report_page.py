"""The report in a real browser: drawn, readable, silent, and without a network."""

import pytest
from made_runs import HOSTILE, write_run

from lorafit.report.html.source import load_run
from lorafit.report.html.write import write_report

CHARTS = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory"}


@pytest.fixture
def report(tmp_path):
    """Return a function that writes a report of runs and returns its address."""

    def write(*folders):
        path = tmp_path / "report.html"
        write_report([load_run(folder) for folder in folders], path)
        return path.as_uri()

    return write


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_curve_is_drawn_at_every_width_and_scheme(visit, report, tmp_path, width, scheme):
    samples = ({"step": 10, "prompt": "word " * 60, "completion": "x" * 300},)
    url = report(write_run(tmp_path / "run", samples=samples, learning_rate=1e-4))
    page = visit(width, scheme)
    page.open(url)
    painted = page.painted()
    assert painted.keys() == CHARTS
    assert all(count > 150 for count in painted.values()), painted
    assert not page.is_too_wide()
    assert page.complaints == []
    assert page.requests == [url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(visit, report, tmp_path, scheme):
    page = visit(1400, scheme)
    page.open(report(write_run(tmp_path / "run", status="interrupted")))
    ratios = page.page.evaluate(_CONTRASTS)
    assert len(ratios) > 10
    # WCAG 2.2, level AA, for text of normal size.
    assert {text: ratio for text, ratio in ratios if ratio < 4.5} == {}


_CONTRASTS = """() => {
  const channel = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll("h1, h2, h3, p, a, dt, dd, th, td, li, .status")];
  return shown.filter((one) => one.textContent.trim()).map((one) => {
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
    return [one.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


def test_hovering_shows_the_values_at_that_step_in_every_chart(visit, report, tmp_path):
    page = visit()
    page.open(report(write_run(tmp_path / "run")))
    assert page.legend("loss").startswith("step 200")
    plot = page.page.locator('[data-chart="loss"] .u-over')
    plot.hover(position={"x": plot.bounding_box()["width"] * 0.25, "y": 50})
    page.page.wait_for_function(
        "!document.querySelector('[data-chart=loss] .legend').textContent.startsWith('step 200')"
    )
    loss, memory = page.legend("loss"), page.legend("memory")
    step = loss.split()[1]
    assert 45 <= int(step) <= 56
    # The cursor is shared, and a validation between two steps shows the last that was measured.
    assert memory.split()[1] == step
    assert "validation" in loss
    assert "predicted peak 900 MiB" in memory


def test_the_keyboard_reads_values_too(visit, report, tmp_path):
    page = visit()
    page.open(report(write_run(tmp_path / "run")))
    page.page.focus('[data-chart="learning_rate"] .plot')
    page.page.keyboard.press("Home")
    assert page.legend("learning_rate").split()[:2] == ["step", "1"]
    page.page.keyboard.press("ArrowRight")
    assert page.legend("learning_rate").split() == ["step", "2", "learning", "rate", "1e-5"]


def test_a_screen_reader_hears_how_each_curve_ends(visit, report, tmp_path):
    page = visit()
    page.open(report(write_run(tmp_path / "run")))
    label = page.page.get_attribute('[data-chart="memory"] .plot', "aria-label")
    assert label.startswith("Memory by step. At the end: step 200, peak of the step 800 MiB")
    assert page.page.locator("details:has(table.values) tbody tr").count() >= 40


def test_the_log_scale_redraws_the_loss(visit, report, tmp_path):
    page = visit()
    page.open(report(write_run(tmp_path / "run")))
    before = page.picture("loss")
    page.page.click('[data-chart="loss"] .scale')
    assert page.page.get_attribute('[data-chart="loss"] .scale', "aria-pressed") == "true"
    page.wait_until_redrawn("loss", before)
    assert page.painted()["loss"] > 150
    assert page.complaints == []


def test_a_change_of_scheme_repaints_the_canvases(visit, report, tmp_path):
    page = visit()
    page.open(report(write_run(tmp_path / "run")))
    before = page.picture("memory")
    page.page.emulate_media(color_scheme="dark")
    page.wait_until_redrawn("memory", before)
    assert page.painted()["memory"] > 150


def test_text_of_a_run_never_runs(visit, report, tmp_path):
    folder = write_run(
        tmp_path / "<img src=x onerror=hacked=1>",
        notes=(HOSTILE,),
        samples=({"step": 1, "prompt": HOSTILE, "completion": HOSTILE},),
    )
    page = visit()
    page.open(report(folder))
    assert page.page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert "</script><script>window.hacked = 1</script>" in page.page.inner_text("#timeline")


def test_several_runs_are_overlaid(visit, report, tmp_path):
    folders = [
        write_run(tmp_path / name, num_steps=steps, scale=scale, learning_rate=rate)
        for name, steps, scale, rate in (("a", 200, 1.0, 1e-4), ("b", 120, 0.6, 2e-4))
    ]
    for width in (400, 1400):
        page = visit(width)
        page.open(report(*folders))
        legend = page.legend("grad_norm")
        assert " a " in f" {' '.join(legend.split())} "
        assert " b " in f" {' '.join(legend.split())} "
        assert all(count > 150 for count in page.painted().values())
        assert not page.is_too_wide()
        assert page.complaints == []


def test_a_run_without_a_step_has_a_page_without_complaints(visit, report, tmp_path):
    url = report(write_run(tmp_path / "run", num_steps=0, status="running"))
    page = visit()
    page.page.goto(url)
    assert "No step was logged." in page.page.inner_text("#curves")
    assert page.complaints == []
