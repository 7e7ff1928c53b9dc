"""Donkey tubs for tests: a striped track whose bend tells the angle, as a folder or a zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 120, 160


def image(angle: float, *, light: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """A grey floor with one white line that leans as the car must turn."""
    chance = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    line = WIDTH / 2 + angle * (HEIGHT - rows) * 0.6
    floor = np.where(np.abs(columns - line) < 6, 230.0, 90.0)
    noisy = floor * light + chance.normal(0, 4, (HEIGHT, WIDTH))
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=85)
    return data.getvalue()


def files(frames: int, *, seed: int = 0, light: float = 1.0) -> dict[str, bytes]:
    """The files of a sound tub: path in it -> bytes."""
    chance = np.random.default_rng(seed)
    angles = np.clip(np.cumsum(chance.normal(0, 0.15, frames)), -1, 1)
    made: dict[str, bytes] = {}
    lines = []
    for number, angle in enumerate(angles):
        name = f"{number}_cam_image_array_.jpg"
        made[f"images/{name}"] = jpeg(image(angle, light=light, seed=seed * 10_000 + number))
        lines.append(json.dumps(record(number, name, float(angle))))
    made["catalog_0.catalog"] = ("\n".join(lines) + "\n").encode()
    made["manifest.json"] = manifest(["catalog_0.catalog"])
    return made


def record(number: int, name: str, angle: Any) -> dict[str, Any]:
    time_ms = 1_700_000_000_000 + number * 50
    return {
        "_index": number,
        "_session_id": "s",
        "_timestamp_ms": time_ms,
        "cam/image_array": name,
        "user/angle": angle,
    }


def manifest(catalogs: list[str], deleted: tuple[int, ...] = ()) -> bytes:
    state = {"paths": catalogs, "current_index": 0, "max_len": 1000, "deleted_indexes": list(deleted)}
    return "\n".join([*("[]", "[]", "{}", "{}"), json.dumps(state)]).encode()


def changed(made: Mapping[str, bytes], number: int, **fields: Any) -> dict[str, bytes]:
    """The same tub with fields of one record changed (`user/angle` as `angle`)."""
    lines = made["catalog_0.catalog"].decode().splitlines()
    told = {
        {"angle": "user/angle", "name": "cam/image_array"}.get(key, key): value
        for key, value in fields.items()
    }
    lines[number] = json.dumps({**json.loads(lines[number]), **told})
    return {**made, "catalog_0.catalog": ("\n".join(lines) + "\n").encode()}


def write_folder(folder: Path, made: Mapping[str, bytes]) -> None:
    for name, data in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_zip(path: Path, made: Mapping[str, bytes], *, inside: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in made.items():
            archive.writestr(inside + name, data)
