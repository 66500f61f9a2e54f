"""Reading datasets: from folders and manifests to upright RGB images, class names and splits."""

from fewsight.data.cache import PixelCache, cache_size
from fewsight.data.decode import (
    IMAGE_SUFFIXES,
    Header,
    ImageError,
    LargeImageError,
    UnknownKindError,
    decode_bytes,
    decode_pixels,
    load_image,
    pixel_digest,
    read_bytes,
    take_image,
)
from fewsight.data.duplicates import candidates, confirmed, load_compared
from fewsight.data.memory import Scanned, changed_files, file_digest
from fewsight.data.samples import Dataset, Ignored, Sample, classes_in, digest, digest_of_list
from fewsight.data.scanning import THUMBNAIL_PX, channel_stats, scan, scan_image
from fewsight.data.selection import WHOLE, EvaluationSet, check_class_sizes, evaluation_samples, training_samples
from fewsight.data.sources import check_source, images_under, is_hidden, is_image, read_dataset
from fewsight.data.splits import split_by_seed

__all__ = [
    "IMAGE_SUFFIXES",
    "THUMBNAIL_PX",
    "WHOLE",
    "Dataset",
    "EvaluationSet",
    "Header",
    "Ignored",
    "ImageError",
    "LargeImageError",
    "PixelCache",
    "Sample",
    "Scanned",
    "UnknownKindError",
    "cache_size",
    "candidates",
    "changed_files",
    "channel_stats",
    "check_class_sizes",
    "check_source",
    "classes_in",
    "confirmed",
    "decode_bytes",
    "decode_pixels",
    "digest",
    "digest_of_list",
    "evaluation_samples",
    "file_digest",
    "images_under",
    "is_hidden",
    "is_image",
    "load_compared",
    "load_image",
    "pixel_digest",
    "read_bytes",
    "read_dataset",
    "scan",
    "scan_image",
    "split_by_seed",
    "take_image",
    "training_samples",
]
