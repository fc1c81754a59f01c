from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pocketlm.errors import InputError
from pocketlm.measure.energy import METHOD_TEXT, WORLD, Meter, request_energy

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="codecarbon is not installed: pocketlm[energy]"
)


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETLM_COUNTRY", raising=False)


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        math.factorial(200)


@needs_codecarbon
def test_energy_grows_with_time_and_stays_plausible() -> None:
    with Meter() as short:
        busy(0.3)
    with Meter() as long:
        busy(0.9)
    assert short.energy_wh is not None
    assert long.energy_wh is not None
    assert 0 < 1.5 * short.energy_wh < long.energy_wh
    watts = long.energy_wh * 3600 / 0.9
    assert 0.5 < watts < 2000


@needs_codecarbon
def test_co2_follows_the_grid() -> None:
    grams: dict[str, float] = {}
    for country in (None, "NOR", "pol"):
        with Meter(country) as meter:
            busy(0.2)
        assert meter.energy_wh
        assert meter.gco2 is not None
        grams[meter.grid] = 1000 * meter.gco2 / meter.energy_wh
    assert list(grams) == [WORLD, "NOR", "POL"]
    assert grams["NOR"] < 100 < grams[WORLD] < grams["POL"]
    assert grams[WORLD] == pytest.approx(475, rel=0.2)


def test_the_country_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_COUNTRY", "fra")
    assert Meter().grid == "FRA"
    assert Meter("DEU").grid == "DEU"
    monkeypatch.setenv("POCKETLM_COUNTRY", "")
    assert Meter().grid == "world average"


@needs_codecarbon
def test_an_unknown_country_is_told_and_leaves_nothing_behind() -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    with pytest.raises(
        InputError, match=r"country='GERMANY' is not a three-letter ISO code.*POCKETLM_COUNTRY"
    ):
        Meter("Germany").__enter__()
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not [name for name in left if name.startswith("pocketlm-energy-")]


@needs_codecarbon
def test_method_says_how_the_cpu_was_read() -> None:
    from codecarbon.core.cpu import is_rapl_available

    with Meter() as meter:
        busy(0.1)
    if sys.platform.startswith("linux"):
        assert meter.method == ("rapl" if is_rapl_available() else "tdp")
    assert meter.method in ("rapl", "tdp")


@needs_codecarbon
def test_rapl_counters_are_told_from_an_estimate() -> None:
    from pocketlm.measure.energy import _method

    def tracker(mode: str) -> object:
        cpu = type("CPU", (), {"_mode": mode})()
        return type("Tracker", (), {"_hardware": [type("RAM", (), {})(), cpu]})()

    assert _method(tracker("intel_rapl")) == "rapl"
    assert _method(tracker("windows_emi")) == "rapl"
    assert _method(tracker("cpu_load")) == "tdp"
    assert _method(tracker("constant")) == "tdp"


def test_method_wording() -> None:
    assert METHOD_TEXT["rapl"] == "RAPL"
    assert METHOD_TEXT["tdp"] == "estimated from TDP"
    assert "pocketlm[energy]" in METHOD_TEXT["none"]


def test_without_codecarbon_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with Meter("DEU") as meter:
        busy(0.1)
    assert (meter.energy_wh, meter.gco2, meter.method) == (None, None, "none")
    assert request_energy(lambda: None, requests=1, seconds=0) is None


@needs_codecarbon
def test_a_tracker_that_fails_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from codecarbon import OfflineEmissionsTracker

    def fail(tracker: object) -> None:
        raise RuntimeError("no such counter")

    monkeypatch.setattr(OfflineEmissionsTracker, "_ensure_hardware_ready", fail)
    with Meter() as meter:
        busy(0.1)
    assert (meter.energy_wh, meter.gco2, meter.method) == (None, None, "none")


@needs_codecarbon
def test_no_network_no_file_no_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tried: list[object] = []

    def refuse(*arguments: object, **keywords: object) -> None:
        tried.append((arguments, keywords))
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    # What a user may have set for CodeCarbon elsewhere must not bring the network in.
    monkeypatch.setenv("CODECARBON_ELECTRICITYMAPS_API_TOKEN", "token")
    monkeypatch.setenv("CODECARBON_CO2_SIGNAL_API_TOKEN", "token")
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CODECARBON_OUTPUT_METHODS", "api,csv,prometheus")
    monkeypatch.setenv("CODECARBON_SAVE_TO_API", "true")
    monkeypatch.setenv("CODECARBON_LOG_LEVEL", "debug")
    monkeypatch.setenv("CODECARBON_ALLOW_MULTIPLE_RUNS", "false")
    monkeypatch.setenv("CODECARBON_CLOUD_PROVIDER", "aws")
    monkeypatch.chdir(tmp_path)
    interrupt = signal.getsignal(signal.SIGINT)
    temporary = set(os.listdir(tempfile.gettempdir()))
    with Meter("FRA") as meter, Meter() as inner:
        busy(0.2)
    assert meter.gco2 is not None
    assert inner.gco2 is not None
    assert tried == []
    assert list(tmp_path.iterdir()) == []
    left = set(os.listdir(tempfile.gettempdir())) - temporary
    assert not [name for name in left if name.startswith(("pocketlm-energy-", ".codecarbon"))]
    assert signal.getsignal(signal.SIGINT) is interrupt
    assert capfd.readouterr() == ("", "")


@needs_codecarbon
def test_a_fresh_process_is_as_quiet(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "from pocketlm.measure.energy import Meter\n"
        "with Meter() as meter: sum(range(10**6))\n"
        "assert meter.energy_wh is not None\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program, *sys.path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@needs_codecarbon
def test_meters_follow_each_other_and_an_error_passes_through() -> None:
    meter = Meter()
    with pytest.raises(ZeroDivisionError), meter:
        busy(0.1)
        _ = 1 / 0
    first = meter.energy_wh
    assert first is not None
    with meter:
        assert meter.energy_wh is None
        busy(0.1)
    assert meter.energy_wh is not None
    assert logging.getLogger().level == logging.WARNING


@needs_codecarbon
def test_request_energy_is_per_request() -> None:
    calls: list[float] = []

    def run() -> None:
        calls.append(time.monotonic())
        busy(0.02)

    many = request_energy(run, requests=10, seconds=0.4)
    one = request_energy(run, requests=1, seconds=0.4)
    assert many is not None
    assert one is not None
    assert calls[-1] - calls[0] >= 0.7
    assert 3 < one / many < 30
    with pytest.raises(InputError, match="requests=0 is not usable; give 1 or more"):
        request_energy(run, requests=0)
