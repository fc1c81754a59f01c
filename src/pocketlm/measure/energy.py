"""The bill: watt-hours and grams of CO2, through CodeCarbon, with no network and no file left behind.

What the figures mean:

- `rapl`: the processor's own energy counters, which count the whole package, other programs included.
- `tdp`: this process's share of CPU time, times the processor's rated power: an estimate. An unknown
  processor, such as one that a virtual machine hides, is taken at 4 W a thread.
- Memory is always estimated, by CodeCarbon's model, from the size of the machine's memory.
- CO2 is the energy times the carbon intensity of a grid: of the country that is given, or else in the
  environment variable POCKETLM_COUNTRY, or else the world's average. Nothing asks the network where we are.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

from pocketlm.errors import InputError

Method = Literal["rapl", "tdp", "none"]

METHOD_TEXT: dict[Method, str] = {
    "rapl": "RAPL",
    "tdp": "estimated from TDP",
    "none": "not measured (pip install 'pocketlm[energy]')",
}
WORLD = "world average"

_ESTIMATED_MODES = ("cpu_load", "constant")


class Meter:
    """Measures the energy of a `with` block.

    One after another is how stages use it; a meter inside another's block is counted in both. A block
    shorter than a tenth of a second reads about zero.

    Args:
        country: Three-letter ISO code whose grid supplies this machine; None: POCKETLM_COUNTRY, or else
            the world average.

    Attributes:
        energy_wh: Watt-hours; None until the block ends, and where nothing could be measured.
        gco2: Grams of CO2 equivalent; None as `energy_wh`.
        method: `rapl`, `tdp`, or `none` where CodeCarbon is not installed or cannot read this machine.
        grid: The country code, or "world average".

    Raises:
        InputError: CodeCarbon has no figures for the country.

    Example:
        >>> with Meter(country="DEU") as meter:
        ...     _ = sum(range(1000))
        >>> meter.grid
        'DEU'
    """

    def __init__(self, country: str | None = None) -> None:
        self.grid = (country or os.environ.get("POCKETLM_COUNTRY") or WORLD).strip()
        if self.grid != WORLD:
            self.grid = self.grid.upper()
        self.energy_wh: float | None = None
        self.gco2: float | None = None
        self.method: Method = "none"
        self._tracker: Any = None
        self._folder = ExitStack()

    def __enter__(self) -> Meter:
        self.energy_wh, self.gco2, self.method = None, None, "none"
        # Some of CodeCarbon's back ends keep a log beside the work; it must not be the user's folder.
        folder = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="pocketlm-energy-"))
        try:
            self._tracker = _started_tracker(self.grid, folder)
        except BaseException:
            self._folder.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.stop()
            # CodeCarbon swallows its own errors; then there is no final record, and no figure.
            record = getattr(tracker, "final_emissions_data", None)
            if record is not None:
                self.energy_wh = float(record.energy_consumed) * 1000
                self.gco2 = float(record.emissions) * 1000
                self.method = _method(tracker)
        self._folder.close()

    def so_far_wh(self) -> float | None:
        """Watt-hours of a block that has not ended, up to its last sample; None as `energy_wh`."""
        energy = getattr(self._tracker, "_total_energy", None)
        return None if energy is None else float(energy.kWh) * 1000


def request_energy(
    run: Callable[[], None], requests: int, country: str | None = None, seconds: float = 3.0
) -> float | None:
    """Watt-hours of one request.

    Args:
        run: Answers `requests` requests. It is called once unmetered, then again and again.
        requests: How many requests one call of `run` answers.
        country: See `Meter`; it has no influence on watt-hours.
        seconds: The least time to measure for: power is sampled about once a second.

    Returns:
        Watt-hours, or None where nothing could be measured.

    Raises:
        InputError: `requests` is below 1.
    """
    if requests < 1:
        raise InputError(f"requests={requests} is not usable; give 1 or more")
    run()
    answered = 0
    with Meter(country) as meter:
        start = time.monotonic()
        while answered == 0 or time.monotonic() - start < seconds:
            run()
            answered += requests
    return None if meter.energy_wh is None else meter.energy_wh / answered


def _started_tracker(grid: str, folder: str) -> Any:
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource
    except ImportError:
        return None
    # Importing CodeCarbon sets its level, and the tracker speaks before it reads its own `log_level`.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    source: Any = DataSource()
    known: dict[str, Any] = source.get_global_energy_mix_data()
    if grid != WORLD and grid not in known:
        raise InputError(
            f"country={grid!r} is not a three-letter ISO code that CodeCarbon knows, such as DEU or USA; "
            "give one as country= or in POCKETLM_COUNTRY, or none for the world average"
        )
    average = float(source.get_carbon_intensity_per_source_data()["world_average"])
    # Everything that could reach the network, the disk or the signal handlers is set here, because what is
    # left open is filled from ~/.codecarbon.config and CODECARBON_* variables.
    tracker: Any = OfflineEmissionsTracker(
        country_iso_code=None if grid == WORLD else grid,
        region=None,
        cloud_provider=None,
        cloud_region=None,
        country_2letter_iso_code=None,
        force_carbon_intensity_g_co2e_kwh=average if grid == WORLD else None,
        electricitymaps_api_token="",  # None would fall back on an older setting
        emissions_endpoint=None,
        output_methods=[],
        output_handlers=[],
        output_dir=folder,
        logger_preamble="",
        log_level="critical",
        allow_multiple_runs=True,  # else it takes a lock file and Ctrl-C for itself
        tracking_mode="process",  # other programs on this machine are not our bill
    )
    tracker.start()
    return tracker


def _method(tracker: Any) -> Method:
    modes = [getattr(part, "_mode", None) for part in tracker._hardware if type(part).__name__ == "CPU"]
    return "tdp" if any(mode in _ESTIMATED_MODES for mode in modes) else "rapl"
