"""A real Chromium, the system's own, with everything that it complains about or fetches kept."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_MILLISECONDS = 300_000
"""A browser on a busy machine is slow, which is no fault of the page."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for the session; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Containers have neither the kernel feature of its sandbox nor a large /dev/shm.
        browser = driver.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
            timeout=_TIMEOUT_MILLISECONDS,
        )
        yield browser
        browser.close()


class Visit:
    """An open page, with what it said on its console, what went wrong and what it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> None:
        """Go to an address and wait until the first chart is drawn."""
        self.page.goto(url)
        self.page.wait_for_selector("figure canvas")

    def painted(self) -> dict[str, int]:
        """Return how many pixels of each chart's plot are neither background nor grid."""
        return dict(self.page.evaluate(_COUNT_COLOURED))

    def is_too_wide(self) -> bool:
        """Return whether the page as a whole would have to be scrolled sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def picture(self, chart: str) -> str:
        """Return what is drawn on the canvas of a chart, as a data URL."""
        return str(self.page.evaluate(_PICTURE, chart))

    def wait_until_redrawn(self, chart: str, before: str) -> None:
        """Wait until a chart looks other than `before`."""
        self.page.wait_for_function(f"([chart, before]) => ({_PICTURE})(chart) !== before",
                                    arg=[chart, before])  # fmt: skip

    def legend(self, chart: str) -> str:
        """Return the readout above a chart."""
        return str(self.page.inner_text(f'[data-chart="{chart}"] .legend'))


# In one piece of JavaScript: between two, a chart that is drawn anew may get another canvas.
_PICTURE = """(chart) =>
  document.querySelector(`[data-chart="${chart}"] canvas`).toDataURL()"""

# Curves are the saturated pixels of a canvas: text, grid and background are greyish.
_COUNT_COLOURED = """() => [...document.querySelectorAll("figure")].map((figure) => {
  const canvas = figure.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b, a] = pixels.slice(i, i + 4);
    if (a > 100 && Math.max(r, g, b) - Math.min(r, g, b) > 60) count += 1;
  }
  return [figure.dataset.chart, count];
})"""


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Return a factory of visits: width in CSS pixels, and light or dark."""
    pages = []

    def start(width: int = 1400, scheme: str = "light") -> Visit:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(_TIMEOUT_MILLISECONDS)
        pages.append(page)
        return Visit(page)

    yield start
    for page in pages:
        page.close()
