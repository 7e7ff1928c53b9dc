"""Write patient records of four hospitals: `python -m fedfleet_hospitals.make_records FOLDER`. Needs scikit-learn.

The records are the Wisconsin breast cancer data (Wolberg, Street, Mangasarian 1995; CC BY 4.0) that scikit-learn
carries. Each hospital sees other patients: they are shared out by quarters of one measurement, the mean texture, so
that 8 % of the first hospital's patients are ill and 66 % of the last one's. A clinic day is 12 patients.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

HOSPITALS = ("birch-hill", "lakeside", "old-town", "riverbank")
BY = "mean texture"
PATIENTS_A_DAY = 12
SEED = 7


def write(folder: Path) -> None:
    """Write one CSV file for each hospital: day, patient, the measurements, malignant (1 or 0)."""
    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    place = np.argsort(np.argsort(data.data[:, names.index(BY)], kind="stable")) * len(HOSPITALS)
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(SEED)
    for number, hospital in enumerate(HOSPITALS):
        rows = chance.permutation(np.flatnonzero(place // len(data.data) == number))
        with (folder / f"{hospital}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["day", "patient", *names, "malignant"])
            for order, row in enumerate(rows):
                values = [f"{value:.6g}" for value in data.data[row]]
                writer.writerow([1 + order // PATIENTS_A_DAY, int(row), *values, 1 - int(data.target[row])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the example's patient records.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
