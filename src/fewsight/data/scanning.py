"""Decode every image in full before the first step; results are remembered from command to command.

An unreadable image is a result here, not an exception. Decoding runs in threads: simplejpeg and Pillow release
the global interpreter lock while they decode. Only results of readable images are remembered, so that a repaired disk
or a newly installed decoder takes effect at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fewsight.data.decode import ImageError, decode_bytes, pixel_digest, read_bytes, read_header
from fewsight.data.memory import Memory, Scanned, Triple, file_digest, open_memory, stamp_of
from fewsight.data.samples import Sample

MIN_STD = 1 / 255  # one grey level: the standard deviation where all images have one colour
_CHUNK = 32  # files that a thread decodes at once; the cache is written after each chunk
THUMBNAIL_PX = 16

NO_MEMORY = Memory(None)


def scan(
    root: Path,
    samples: Sequence[Sample],
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    reread: bool = False,
) -> list[Scanned]:
    """Scan images. Contents that were scanned before are not decoded again, and a file that has not changed since, by
    its size and times, is not read again.

    Args:
        root: the dataset's root.
        samples: the images.
        workers: the number of threads; the number of cores is a good choice.
        progress: called with (images done, images in all), from this thread.
        reread: read every file and compare its contents, whatever its size and times say.

    Returns:
        The result of each image, in the order of `samples`.
    """
    folder = os.path.abspath(root)  # noqa: PTH100 fast for 50,000 files
    results: list[Scanned | None] = [None] * len(samples)
    with open_memory() as memory:
        for index, sample in enumerate(samples if not reread else ()):
            digest = memory.digest(stamp_of(os.path.join(folder, sample.path)))  # noqa: PTH118 as above
            results[index] = memory.measured(digest) if digest is not None else None
        todo = [index for index, result in enumerate(results) if result is None]
        done = len(samples) - len(todo)
        if progress is not None:
            progress(done, len(samples))
        chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
        paths = [[samples[index].path for index in chunk] for chunk in chunks]
        for chunk, scanned_chunk in zip(chunks, _scan_chunks(root, paths, workers, memory), strict=True):
            for index, scanned in zip(chunk, scanned_chunk, strict=True):
                results[index] = scanned
            memory.save()
            done += len(chunk)
            if progress is not None:
                progress(done, len(samples))
    return [result for result in results if result is not None]


def channel_stats(scanned: Sequence[Scanned]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over the readable images, all images weighted equally.

    std = sqrt(mean over images of the mean square - mean**2), at least `MIN_STD`.

    Returns:
        Mean and standard deviation of red, green and blue, for values in [0, 1].

    Raises:
        ValueError: no image is readable.
    """
    readable = [image for image in scanned if image.error is None]
    if not readable:
        raise ValueError("no readable image to compute the mean and standard deviation of")
    mean = np.array([image.mean for image in readable]).mean(axis=0)
    mean_square = np.array([image.mean_square for image in readable]).mean(axis=0)
    std = np.maximum(np.sqrt(np.maximum(mean_square - mean**2, 0)), MIN_STD)
    return _triple(mean), _triple(std)


def scan_image(path: Path, name: str, memory: Memory = NO_MEMORY) -> Scanned:
    """Decode the file at `path` in full and measure it, unless its contents are remembered; `name` is for the error."""
    stamp = stamp_of(str(path))
    try:
        data = read_bytes(path)
        digest = file_digest(data)
        memory.add_digest(stamp, digest)
        if (remembered := memory.measured(digest)) is not None:
            return remembered
        image = decode_bytes(data, str(path))
    except ImageError as error:
        return Scanned(0, 0, f"{name}: {error.reason}")
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)  # [channel, value]
    values = np.arange(256) / 255
    num_pixels = image.width * image.height
    scanned = Scanned(
        image.width,
        image.height,
        mean=_triple(counts @ values / num_pixels),
        mean_square=_triple(counts @ values**2 / num_pixels),
        pixels=pixel_digest(image),
        thumbnail=image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX).tobytes(),
        header=read_header(data),
        digest=digest,
    )
    memory.add(scanned)
    return scanned


def _triple(values: np.ndarray) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _scan_chunks(root: Path, chunks: list[list[str]], workers: int, memory: Memory) -> Iterator[list[Scanned]]:
    def scan_chunk(paths: list[str]) -> list[Scanned]:
        return [scan_image(root / path, path, memory) for path in paths]

    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="scan")
    try:
        yield from pool.map(scan_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the whole dataset
