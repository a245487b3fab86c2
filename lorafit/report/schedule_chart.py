"""Learning-rate curves drawn into a file, with matplotlib (extra `plots`)."""

from collections.abc import Sequence
from pathlib import Path

from lorafit.config.schedule import HIGH_RATE
from lorafit.config.schedule_changes import Course
from lorafit.files import require_drawable, storage_errors

SUFFIXES = (".png", ".svg")
_INCHES = (9.0, 4.5)
_POINTS = 1000


def require_chart_file(path: Path) -> None:
    """Refuse a file that curves cannot be drawn into, before anything is computed.

    Raises:
        UsageError: its suffix is not .png or .svg, or matplotlib is not installed.
        StorageError: its folder is missing, or it is a folder itself.
    """
    require_drawable(path, SUFFIXES, flag="--plot", example="rates.png")


def write_chart(path: Path, courses: Sequence[Course]) -> None:
    """Draw the learning rate of each run over its steps; the first is drawn boldest.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for number, course in enumerate(courses):
        total = course.schedule.total_steps
        stride = max(1, total // _POINTS)
        steps = [*range(0, total, stride), total - 1]
        rates = [course.rate_at(step) for step in steps]
        style = "-" if number == 0 else "--"
        (line,) = axes.plot(
            [step + 1 for step in steps], rates, style, linewidth=2.2 - 0.8 * number,
            label=f"{course.label}: {total:,} steps, {course.rates.high_share:.0%} of them high",
        )  # fmt: skip
        if course.schedule.warmup_steps:
            axes.axvspan(1, course.schedule.warmup_steps + 1, color=line.get_color(), alpha=0.08)
        axes.axhline(
            HIGH_RATE * course.rates.peak_rate, color=line.get_color(), linewidth=0.6, alpha=0.5
        )
    axes.set(xlabel="step", ylabel="learning rate", xlim=(1, None), ylim=(0, None))
    axes.set_title(f"Learning rate; shaded: warm-up, thin line: {HIGH_RATE:.0%} of the peak")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with storage_errors("cannot be written", path):
        figure.savefig(path, dpi=150)
