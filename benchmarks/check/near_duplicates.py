"""How many copies of real images `fewsight check` takes for near duplicates, kind by kind, and how many others.

`python -m benchmarks.check copies FOLDER [--images 400]`: FOLDER has train/ and val/, such as tiny-imagenet-50. That
many images of it are drawn by seed; one kind after the other, each is copied by it, and the copies are sought among all
images of both splits. A pair that is no copy is a false one, or a real near duplicate in the data.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.machine import about, keep, listed
from fewsight.data import candidates, confirmed, load_image, read_dataset, scan
from fewsight.machine.cores import num_cores


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    handle = io.BytesIO()
    image.save(handle, "JPEG", quality=quality)
    return Image.open(handle).convert("RGB")


def inner(image: Image.Image, share: float) -> Image.Image:
    """Without a border of that share of each side."""
    left, top = round(share * image.width), round(share * image.height)
    return image.crop((left, top, image.width - left, image.height - top))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": lambda image: jpeg(image, 75),
    "JPEG, quality 30": lambda image: jpeg(image, 30),
    "3/4 of the size": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "twice the size, JPEG 60": lambda image: jpeg(image.resize((2 * image.width, 2 * image.height)), 60),
    "brighter by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast less by 20 %": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "mirrored": ImageOps.mirror,
    "mirrored, JPEG 50": lambda image: jpeg(ImageOps.mirror(image), 50),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cropped by 3 % a side": lambda image: inner(image, 0.03),
    "cropped by 6 % a side": lambda image: inner(image, 0.06),
}


def thumbnail(image: Image.Image) -> bytes:
    return image.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()


def compared(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    dataset = read_dataset(options.folder)
    samples = [sample for samples in dataset.splits.values() for sample in samples]
    scanned = scan(dataset.root, samples, workers=num_cores())
    drawn = np.random.default_rng(0).choice(len(samples), options.images, replace=False)
    setting = about(
        "check copies", [], images=f"{options.folder.name}, {len(samples):,} images, {options.images} copied"
    )
    lines = [*listed(setting), "| copy | found | pairs that are no copy | seconds to seek |", "|---|---|---|---|"]
    found = {}
    for kind, change in COPIES.items():
        copies = [change(load_image(dataset.root / samples[number].path)) for number in drawn]
        thumbnails = [one.thumbnail for one in scanned] + [thumbnail(copy) for copy in copies]

        def load(place: int, copies: list[Image.Image] = copies) -> np.ndarray:
            known = place < len(samples)
            return compared(load_image(dataset.root / samples[place].path) if known else copies[place - len(samples)])

        began = time.perf_counter()
        pairs = {(one, other) for one, other, _ in confirmed(candidates(thumbnails), load)}
        seconds = time.perf_counter() - began
        expected = {(int(number), len(samples) + place) for place, number in enumerate(drawn)}
        # a copy of an image that has an equal one is found with both
        equal = {scanned[one].pixels for one in drawn}
        others = [pair for pair in pairs - expected if scanned[pair[0]].pixels not in equal or pair[1] < len(samples)]
        found[kind] = [len(pairs & expected), len(others), seconds]
        lines.append(f"| {kind} | {len(pairs & expected)} of {len(expected)} | {len(others)} | {seconds:.1f} |")
        print(lines[-1], flush=True)
    keep("near-duplicates", "Near duplicates", lines, {"about": setting, "found": found})


if __name__ == "__main__":
    main()
