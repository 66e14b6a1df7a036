import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offmarl.credit.relabel import CreditReport, decompose
from offmarl.data.store import Dataset

sys.path.insert(0, str(Path(__file__).parent))  # for studies.py

HASTY = {"structure_steps": 100, "refit_steps": 60, "pruning_factors": (), "width": 16, "fallback": False}


@pytest.fixture(scope="session")
def dataset(random_dataset) -> Dataset:
    """Three agents whose causes and true rewards are known."""
    folder = random_dataset("scm_a", 2_000, 40, agents=3)
    with Dataset.open(folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def report(dataset) -> CreditReport:
    """A decomposition of it, made in a hurry."""
    return decompose(dataset, values=HASTY)


FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator[Any]:
    """A real browser without a window; tests skip where it, its driver or selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
