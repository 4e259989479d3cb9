"""The pictures of README.md: a build's screen, and the first page of the newest recorded report, by headless Chromium.

    python benchmarks/screenshots.py recipes/digits.yaml --out docs/images

Needs Debian's package `chromium`, and a build of the recipe on this host.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engineworks.settings import read_settings

PROGRAM = Path(sys.executable).parent / "engineworks"
WIDTHS = {"report.png": (1000, 620), "report-phone.png": (360, 720)}
SCREEN = "<body style='margin:0;background:#16191d'><pre style='color:#e6e8eb;font:13px/1.35 monospace;padding:12px'>"
COLUMNS, LINE_PX, CHARACTER_PX = 100, 18, 8


def take(browser: str, page: str, width: int, height: int, out: Path) -> None:
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={width},{height}", f"--screenshot={out.resolve()}", page],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/digits.yaml"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    browser = shutil.which("chromium") or sys.exit("chromium is not installed: apt-get install chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"COLUMNS": str(COLUMNS), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    built = subprocess.run([PROGRAM, "build", options.recipe], capture_output=True, text=True, check=True, env=env)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "screen.html"
        shown = html.escape(built.stdout.replace(str(read_settings().artifacts), "artifacts"))
        page.write_text(f"<meta charset=utf-8>{SCREEN}{shown}</pre>", encoding="utf-8")
        height = LINE_PX * len(built.stdout.splitlines()) + 50
        take(browser, page.as_uri(), CHARACTER_PX * COLUMNS + 24, height, options.out / "terminal.png")
    said = subprocess.run([PROGRAM, "report", options.recipe.stem], capture_output=True, text=True, check=True)
    for name, (width, height) in WIDTHS.items():
        take(browser, Path(said.stdout.strip()).as_uri(), width, height, options.out / name)


if __name__ == "__main__":
    main()
