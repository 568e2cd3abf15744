"""Take the pictures of docs/monitoring.md: one run as TensorBoard, Trackio and W&B's terminal viewer show it, offline.

    pip install -e '.[trl,report]' tensorboard trackio wandb pyte playwright   # and Chromium: apt-get install chromium
    python docs/generate_monitoring.py FOLDER   # trains there first, unless the folder has a run

Requests that leave this machine are refused.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyte
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
BIN = Path(sys.executable).parent
SHOWN = "knapsack/(frac_prompts|frac_rollouts|frac_solved_n|count_max|price|predicted)"
COLUMNS, ROWS, SIZE = 132, 38, {"width": 1180, "height": 720}
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


def terminal(folder: Path, command: list[str], keys: list[str]) -> str:
    """What a program shows in a terminal after some keys, as HTML."""
    process, end = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execv(BIN / command[0], command)
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, waiting, quiet = pyte.ByteStream(screen), list(keys), time.time() + 20
    while waiting or time.time() < quiet:
        if select.select([end], [], [], 1)[0]:
            stream.feed(os.read(end, 65536))
        elif waiting and time.time() > quiet - 15:
            os.write(end, waiting.pop(0).encode())
            quiet = time.time() + 20
    os.kill(process, 9)
    os.waitpid(process, 0)
    return "\n".join("".join(map(cell, (screen.buffer[y][x] for x in range(COLUMNS)))) for y in range(ROWS))


def cell(char: Any) -> str:
    """One character of a terminal, in its colour."""
    colour = f"#{char.fg}" if re.fullmatch("[0-9a-f]{6}", char.fg) else {"default": "#ddd"}.get(char.fg, char.fg)
    return f'<span style="color:{colour}">{escape(char.data)}</span>'


def main(folder: Path) -> None:
    """Train where no run is, and take the three pictures."""
    os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "BROWSER": "true", "TERM": "xterm-256color"}
    if not (folder / "out").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([BIN / "knapsack-rl", *TRAIN.split(), "--output", "out"], cwd=folder, check=True)
    run = str(next((folder / "wandb").glob("offline-run-*")))
    text = terminal(folder, ["wandb", "beta", "leet", "run", run], ["[", "]", f"/{SHOWN}", "\r"])
    board, board_at = start(folder, "tensorboard", "--logdir", "out", "--host", "127.0.0.1")
    trackio, trackio_at = start(folder, "trackio", "show", "--project", "sorting")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(120_000)
        here = {"127.0.0.1", "localhost"}
        page.route("**/*", lambda r: r.continue_() if urlsplit(r.request.url).hostname in here else r.abort())
        page.goto(board_at, wait_until="domcontentloaded")
        page.get_by_placeholder("Filter tags (regex)").fill(SHOWN)
        page.locator("mat-icon[svgicon=close_24px]").last.click()
        page.wait_for_timeout(20_000)
        page.screenshot(path=IMAGES / "monitoring-tensorboard.png")
        page.goto(trackio_at, wait_until="domcontentloaded")
        page.locator("input[type=text], textarea").last.fill(SHOWN)
        page.wait_for_timeout(20_000)
        page.screenshot(path=IMAGES / "monitoring-trackio.png")
        page.set_content(f"<body style='background:#1b1b1b;margin:12px'><pre style='font:13px/16px DejaVu Sans Mono'>{text}")
        page.screenshot(path=IMAGES / "monitoring-wandb.png")
        browser.close()
    for process in (board, trackio):
        process.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
