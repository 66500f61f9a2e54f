"""Time and memory of `fewsight check` as images grow, near duplicates too.

`python -m benchmarks.check many FOLDER [--images 25000 50000 100000]`: FOLDER has train/ and val/, such as
tiny-imagenet-50. Every image that is checked is a blend of two of its images, drawn by seed, so that no two are alike;
to them 100 copies as JPEG of quality 30 are added, in other classes. Each size is checked with an empty memory, by a
process of its own.
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.check.near_duplicates import jpeg
from benchmarks.machine import about, keep, listed, measured_command
from fewsight.data import load_image, read_dataset
from fewsight.machine.cores import num_cores

CLASSES, COPIES, PART = 200, 100, 1000


def write_part(source: str, target: str, start: int, count: int) -> None:
    """Blends number `start` and following; each a function of its number."""
    dataset = read_dataset(Path(source))
    samples = [sample for samples in dataset.splits.values() for sample in samples]
    for number in range(start, start + count):
        rng = np.random.default_rng([7, number])
        pair = [load_image(dataset.root / samples[place].path) for place in rng.choice(len(samples), 2, replace=False)]
        blend = Image.blend(pair[0], pair[1].resize(pair[0].size), float(rng.uniform(0.35, 0.65)))
        folder = Path(target) / f"class{number % CLASSES:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        blend.save(folder / f"{number:06d}.jpg", quality=85)


def write_images(source: Path, target: Path, count: int) -> set[frozenset[str]]:
    """The names of each image and its planted copy."""
    with ProcessPoolExecutor(num_cores()) as pool:
        for start in range(0, count, PART):
            pool.submit(write_part, str(source), str(target), start, min(PART, count - start))
    planted = set()
    for number in np.random.default_rng(8).choice(count, COPIES, replace=False):
        own, other = (f"class{(number + step) % CLASSES:03d}" for step in (0, 1))
        with Image.open(target / own / f"{number:06d}.jpg") as image:
            jpeg(image.convert("RGB"), 30).save(target / other / f"copy{number:06d}.png")
        planted.add(frozenset({f"{own}/{number:06d}.jpg", f"{other}/copy{number:06d}.png"}))
    return planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    options = parser.parse_args()
    setting = about("check many", [], images=f"blends of {options.folder.name}")
    lines = [*listed(setting), "| images | first check, s | again, s | peak memory, MB | copies found | other pairs |"]
    lines.append("|---|---|---|---|---|---|")
    kept = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as temporary:
            data, found_file = Path(temporary) / "data", Path(temporary) / "found.json"
            planted = write_images(options.folder, data, count)
            os.environ["FEWSIGHT_CACHE"] = str(Path(temporary) / "cache")
            command = ["check", str(data), "--json", str(found_file)]
            first, memory = measured_command(command, fine=(0, 1))
            again, _ = measured_command(command, fine=(0, 1))
            findings = json.loads(found_file.read_text())["findings"]
        groups = {frozenset(group) for one in findings if "nearly equal" in one["kind"] for group in one["groups"]}
        right = len(groups & planted)
        kept.append({"images": count, "first": first, "again": again, "peak_mb": memory, "found": right,
                     "others": len(groups) - right})  # fmt: skip
        lines.append(
            f"| {count:,} | {first:.0f} | {again:.1f} | {memory:.0f} | {right} of {COPIES} | {len(groups) - right} |"
        )
        print(lines[-1], flush=True)
    keep("check-many", "Checking many images", lines, {"about": setting, "found": kept})


if __name__ == "__main__":
    main()
