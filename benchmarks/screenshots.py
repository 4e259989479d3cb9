"""The pictures of README.md: the first page of the newest recorded report, by headless Chromium.

    python benchmarks/screenshots.py digits --out docs/images

Needs Debian's package `chromium`, and a build of the recipe on this host.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "engineworks"
WIDTHS = {"report.png": (1000, 620), "report-phone.png": (360, 720)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    browser = shutil.which("chromium") or sys.exit("chromium is not installed: apt-get install chromium")
    done = subprocess.run([PROGRAM, "report", options.recipe], capture_output=True, text=True, check=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in WIDTHS.items():
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--window-size={width},{height}", f"--screenshot={(options.out / name).resolve()}",
             Path(done.stdout.strip()).as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        print(options.out / name)


if __name__ == "__main__":
    main()
