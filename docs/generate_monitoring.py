"""Take the pictures of docs/monitoring.md: one run as TensorBoard and Trackio show it, without a network.

    pip install -e '.[trl,report]' tensorboard trackio wandb playwright   # and Chromium: apt-get install chromium
    python docs/generate_monitoring.py FOLDER   # trains there first, unless the folder has a run

Requests that leave this machine are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
SHOWN = "knapsack/(frac_prompts|frac_rollouts|frac_solved_n|count_max|price|predicted)"
SIZE = {"width": 1180, "height": 720}
TRAIN = "train --rules calibrated --steps 40 --logging_steps 1 --report_to tensorboard,trackio,wandb --project sorting"


def start(folder: Path, *command: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server of this environment; its process, and the address that it prints."""
    log = folder / f"{command[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen([BIN / command[0], *command[1:]], cwd=folder, stdout=file, stderr=file)
    for _ in range(120):
        time.sleep(1)
        if address := re.search(r"http://[\w.:]+/(\?[\w=&]*)?", log.read_text()):
            return process, address[0]
    raise SystemExit(f"{command[0]} did not start:\n{log.read_text()}")


def picture(page: Any, address: str, name: str, field: str, closed: str | None = None) -> None:
    """Open a page of metrics, filter it, and take its picture."""
    page.goto(address, wait_until="domcontentloaded")
    page.locator(field).last.fill(SHOWN)
    if closed is not None:
        page.locator(closed).click()
    page.wait_for_timeout(20_000)
    page.screenshot(path=IMAGES / f"monitoring-{name}.png")


def main(folder: Path) -> None:
    """Train where no run is, and take the pictures."""
    os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    os.environ["BROWSER"] = "true"  # Trackio opens one
    if not (folder / "out").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([BIN / "knapsack-rl", *TRAIN.split(), "--output", "out"], cwd=folder, check=True)
    servers = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            page.route("**/*", lambda r: r.continue_() if urlsplit(r.request.url).hostname == HOST else r.abort())
            server, address = start(folder, "tensorboard", "--logdir", "out", "--host", HOST)
            servers.append(server)
            picture(page, address, "tensorboard", "metrics-tag-filter-component input", "button.settings-button")
            server, address = start(folder, "trackio", "show", "--project", "sorting")
            servers.append(server)
            picture(page, address, "trackio", "input[type=text], textarea")
            browser.close()
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
