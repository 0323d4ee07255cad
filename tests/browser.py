"""A page as people see it: headless Chromium, where there is one (`apt-get install chromium`)."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_CALM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
# In a frame of that width, since a window can't be as narrow as a phone: what sticks out of the page, and what of a
# text sticks out of its own box.
_MEASURE = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, seen = {width: page.documentElement.scrollWidth, out: [], cut: [], over: []};
  const of = (each) => each.tagName + " " + (each.textContent || "").trim().slice(0, 40);
  for (const each of page.body.querySelectorAll("*")) {
    const box = each.getBoundingClientRect();
    if (!each.closest("svg") && box.right > frame.clientWidth + 0.5) seen.out.push(of(each));
    if (each.clientWidth && each.scrollWidth > each.clientWidth + 1 && !each.closest("svg")) seen.cut.push(of(each));
  }
  const cells = [...page.querySelectorAll("td, dd, dt, li, h1, h2, h3, p, pre, figcaption")].filter(
    (each) => each.getBoundingClientRect().height && !each.querySelector("td, dd, dt, li, p"));
  const boxes = cells.map((each) => each.getBoundingClientRect());
  for (let a = 0; a < boxes.length; a++) for (let b = a + 1; b < Math.min(boxes.length, a + 60); b++)
    if (Math.min(boxes[a].right, boxes[b].right) - Math.max(boxes[a].left, boxes[b].left) > 1 &&
        Math.min(boxes[a].bottom, boxes[b].bottom) - Math.max(boxes[a].top, boxes[b].top) > 1)
      seen.over.push(of(cells[a]) + " / " + of(cells[b]));
  seen.requests = frame.contentWindow.performance.getEntriesByType("resource").map((each) => each.name)
    .filter((name) => !name.startsWith("data:"));
  seen.height = page.documentElement.scrollHeight;
  seen.ground = getComputedStyle(page.body).backgroundColor;
  document.title = "measured";
  document.body.dataset.seen = JSON.stringify(seen);
});
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A page at a width. `out`: elements that stick out of it. `cut`: whose content is wider than they are. `over`:
    texts that lie on one another. `requests`: everything that it asked for beside itself.
    """

    width: int
    height: int
    out: list[str]
    cut: list[str]
    over: list[str]
    ground: str
    requests: list[str]


def look(page: Path, width: int, folder: Path, *, dark: bool = False, picture: Path | None = None) -> Seen:
    """Measure a page, and take a picture of all of it."""
    # Without its own policy, which would hide what it asks for.
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page.read_text("utf-8"))
    frame = (
        f'<iframe style="border:0;display:block" width="{width}" height="HEIGHT" srcdoc="{html.escape(text)}"></iframe>'
    )
    measured = _frame(folder, frame.replace("HEIGHT", "900"), f"<script>{_MEASURE}</script>")
    dom = _run(measured, dark, "--dump-dom")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, dom[-2000:]
    seen = json.loads(html.unescape(found[1]))
    if picture is not None:
        whole = _frame(folder, frame.replace("HEIGHT", str(seen["height"])), "")
        _run(whole, dark, f"--screenshot={picture}", f"--window-size={max(width, 500)},{seen['height']}")
    return Seen(**seen)


def _frame(folder: Path, frame: str, script: str) -> Path:
    path = folder / "frame.html"
    path.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}{script}', "utf-8")
    return path


def _run(page: Path, dark: bool, *options: str) -> str:
    assert CHROMIUM
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *_CALM, f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000", scheme]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
