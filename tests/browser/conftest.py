"""A small sweep, an MLflow server on its store, and a headless Chromium, each once per session."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from listeners import free_port
from playwright.sync_api import Browser, Page, expect, sync_playwright
from small_sweep import Made, make_sweep
from waiting import await_answer

HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a finished sweep."""
    return make_sweep(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def mlflow_pages(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server that `make ui` starts and return its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", made.store]
    command += ["--default-artifact-root", str(made.folder.parent / "mlartifacts")]
    log = tmp_path_factory.mktemp("server") / "log"
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | quiet, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        await_answer(f"{address}/health", server, log=log)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium; skip with a notice where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(
            "chromium is not installed (apt-get install chromium): nothing was looked at in a "
            "browser"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(HEADLESS))
        yield chromium
        chromium.close()


@pytest.fixture
def desk(browser: Browser) -> Iterator[Page]:
    """Open an empty page of a desktop's width."""
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=30_000)
    yield page
    context.close()
