"""Every image format decodes to the right RGB pixels; every bad file gives one line with its name."""

import contextlib
import io
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_digits

from fewsight.data import ImageError, decode_bytes, decode_pixels, load_image
from fewsight.errors import DataError

RNG = np.random.default_rng(0)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 48), np.linspace(255, 0, 32)), -1)  # [32, 48, 2]
RGB = np.concatenate([SMOOTH, np.full((32, 48, 1), 90)], -1).astype(np.uint8)  # [32, 48, 3]


def saved(image: "Image.Image | np.ndarray", kind: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode_bytes(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def tiff(
    values: np.ndarray,
    photometric: int,
    extra: list[int] | None = None,
    order: str = "<",
    *,
    planar: bool = False,
    deflate: bool = False,
    others: dict[int, int] | None = None,
) -> bytes:
    """A TIFF of any depth and channels; `values` is [H, W, C].

    Args:
        planar: store the channels one after another.
        deflate: compress them.
        others: more tags, of type short, or other values of these.
    """
    height, width, channels = values.shape
    planes = np.moveaxis(values, 2, 0) if planar else values[None]
    strips = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]  # type: ignore[arg-type]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    body, starts = b"".join(strips), np.cumsum([8, *map(len, strips[:-1])]).tolist()
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [values.dtype.itemsize * 8] * channels),
        (259, 3, [8 if deflate else 1]),
    ]
    tags += [
        (262, 3, [photometric]),
        (273, 4, starts),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(strip) for strip in strips]),
        (284, 3, [2 if planar else 1]),
    ]
    tags += [(338, 3, extra)] if extra else []
    tags += [(339, 3, [sample_format] * channels)]
    tags = sorted(
        [tag for tag in tags if tag[0] not in (others or {})] + [(k, 3, [v]) for k, v in (others or {}).items()]
    )
    body += b"\0" * (len(body) % 2)
    directory, tail = struct.pack(order + "H", len(tags)), b""
    tail_at = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in tags:
        raw = struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers)
        if len(raw) > 4:
            raw, tail = struct.pack(order + "I", tail_at + len(tail)), tail + raw
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + raw.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(body))
    return start + body + directory + bytes(4) + tail


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_decode_lossless_rgb_is_exact(kind: str) -> None:
    data = saved(RGB, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(data), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_decode_jpeg_equals_pillow(options: dict[str, Any]) -> None:
    data = saved(RGB, "JPEG", quality=95, **options)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


def test_decode_real_jpegs_equal_pillow(fewsight_data: Path) -> None:
    for path in sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[::16]:
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(load_image(path)), np.asarray(image.convert("RGB"))), path


def test_decode_avif_is_close() -> None:
    assert np.abs(pixels(saved(RGB, "AVIF", quality=95)) - RGB).mean() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_decode_grey_has_three_equal_channels(kind: str) -> None:
    decoded = pixels(saved(RGB[..., 0], kind))
    assert np.abs(decoded - RGB[..., :1]).max() <= 3


def test_decode_cmyk_jpeg_gives_the_colours() -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    decoded = pixels(saved(red, "JPEG", quality=100))
    assert np.abs(decoded - [200, 30, 60]).max() <= 3


def test_decode_cmyk_tiff_gives_the_colours() -> None:
    decoded = pixels(saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"))
    assert np.abs(decoded - RGB).max() <= 1


@pytest.mark.parametrize(("order", "photometric"), [("<", 0), ("<", 1), (">", 1)])  # Pillow lacks (">", 0)
def test_decode_16_bit_grey_tiff_is_scaled(order: str, photometric: int) -> None:
    grey = np.linspace(0, 65535, 512).astype(np.uint16).reshape(16, 32, 1)
    expected = np.rint((65535 - grey.astype(float) if photometric == 0 else grey) / 257)
    assert np.abs(pixels(tiff(grey, photometric, order=order)) - expected).max() <= 0.5


def test_decode_16_bit_grey_png_is_scaled() -> None:
    grey = np.linspace(0, 65535, 512).astype(np.uint16).reshape(16, 32)
    assert np.array_equal(pixels(saved(grey, "PNG"))[..., 1], np.rint(grey / 257))


@pytest.mark.parametrize("order", ["<", ">"])
def test_decode_16_bit_rgb_is_scaled(order: str) -> None:
    rgb = RNG.integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    assert np.abs(pixels(tiff(rgb, 2, order=order)) - rgb / 257).max() <= 1


def test_decode_float_tiff_from_0_to_1_is_scaled_and_others_are_refused() -> None:
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(pixels(saved(grey, "TIFF"))[..., 0], np.arange(256).reshape(16, 16))
    for bad in (grey * 200, np.full_like(grey, np.nan), -grey):
        with pytest.raises(ImageError, match=r"outside 0 to 1 .* 8 or 16 bits"):
            pixels(saved(bad, "TIFF"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.uint8, 4), (np.uint16, 3), (np.uint16, 4)])
def test_decode_planar_tiff_is_right_or_refused(kind: type, channels: int, order: str) -> None:
    """Pillow reads 16 bits without compression wrongly and without a word."""
    values = RNG.integers(0, np.iinfo(kind).max, (8, 9, channels), endpoint=True).astype(kind)
    values[..., 3:] = np.iinfo(kind).max  # opaque
    expected = values[..., :3] / (257 if kind is np.uint16 else 1)
    extra = [2] if channels == 4 else None
    for deflate in (False, True):
        data = tiff(values, 2, extra, order, planar=True, deflate=deflate)
        if kind is np.uint16 and not deflate:
            with pytest.raises(ImageError, match="stored one after another in a way that is not read"):
                pixels(data)
        else:
            assert np.abs(pixels(data) - expected).max() <= 1


def test_decode_tiff_layouts_that_would_be_read_wrongly_are_refused() -> None:
    byte = RNG.integers(0, 256, (8, 9, 2)).astype(np.uint8)
    assert pixels(tiff(byte, 1, [2], deflate=True)).shape == (8, 9, 3)
    with pytest.raises(ImageError, match="stored one after another"):
        pixels(tiff(byte, 1, [2], planar=True, deflate=True))
    with pytest.raises(ImageError, match="signed integers have no agreed range"):
        pixels(tiff(byte[..., :1].view(np.int8), 1))
    with pytest.raises(ImageError, match="a volume of 2 planes"):
        pixels(tiff(byte[..., :1], 1, others={32997: 2}))
    mask = RNG.integers(0, 2, (8, 9, 1)).astype(np.float32)
    for order in "<>":
        assert np.array_equal(pixels(tiff(mask, 1, order=order))[..., :1], 255 * mask)
    assert np.array_equal(pixels(tiff(mask, 1, deflate=True))[..., :1], 255 * mask)
    with pytest.raises(ImageError, match="compressed floating-point values in big-endian order"):
        pixels(tiff(mask, 1, order=">", deflate=True))


def test_decode_float_tiff_whose_zero_is_white() -> None:
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16, 1)
    assert np.array_equal(pixels(tiff(grey, 0))[..., 0], 255 - np.arange(256).reshape(16, 16))


def test_decode_12_bit_tiff_is_scaled() -> None:
    grey = np.arange(0, 4096, 8).reshape(16, 32)
    first, second = grey.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)  # [H W / 2, 3]
    data = tiff(packed.reshape(16, 48, 1), 1, others={256: 32, 258: 12})
    assert np.abs(pixels(data)[..., 0] - grey * (255 / 4095)).max() <= 0.51


def test_decode_32_bit_integers_are_refused() -> None:
    with pytest.raises(ImageError, match="no agreed range"):
        pixels(tiff(RNG.integers(0, 99, (4, 4, 1)).astype(np.uint32), 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_transparency_is_composited_over_white(mode: str) -> None:
    alpha = np.tile(np.array([0, 255, 128], np.uint8), (3, 1))
    rgba = np.dstack([np.zeros((3, 3, 3), np.uint8), alpha])
    image = Image.fromarray(rgba)
    if mode != "RGBA":
        image = image.convert("LA")
    data = saved(image.convert(mode), "PNG")
    assert np.abs(pixels(data) - (255 - alpha[..., None].astype(int))).max() <= 1


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_decode_palette_transparency_is_composited_over_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = pixels(saved(image, "PNG", transparency=transparency))
    assert decoded.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_decode_one_bit_is_black_and_white() -> None:
    bits = RGB[..., 0] > 100
    assert np.array_equal(pixels(saved(bits, "PNG"))[..., 2], bits * 255)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_decode_takes_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = saved(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(kind: str, orientation: int) -> None:
    quadrants = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 32), np.uint8))  # [32, 64]
    upright = np.dstack([quadrants] * 3)
    undo = {
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (1, True),
        6: (1, False),
        7: (3, True),
        8: (3, False),
    }
    turns, mirror = undo.get(orientation, (0, False))
    stored = upright[:, ::-1] if mirror else upright
    stored = np.rot90(stored, turns)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = pixels(saved(np.ascontiguousarray(stored), kind, exif=exif))
    assert decoded.shape == upright.shape
    assert np.abs(decoded - upright).mean() < 6, orientation


def test_decode_heic_is_close_and_upright() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(RGB)).save(buffer, quality=95)
    assert np.abs(pixels(buffer.getvalue()) - RGB).mean() < 5


def test_decode_heic_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"a\.heic: .*fewsight\[heic\]"):
        decode_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic", "a.heic")


def test_decode_more_than_three_colours_is_refused() -> None:
    byte = RNG.integers(0, 256, (4, 4, 6)).astype(np.uint8)
    kinds = [
        (5, 2, [0, 0]),
        (4, 2, None),
        (4, 2, [0]),
        (5, 1, [0] * 4),
        (5, 2, [2, 0]),
        (6, 2, [0] * 3),
        (5, 5, [0]),
    ]
    for channels, photometric, extra in [*kinds, (2, 1, [0])]:
        with pytest.raises(ImageError, match=f"{channels} channels: only grey, RGB or CMYK"):
            decode_bytes(tiff(byte[..., :channels], photometric, extra), "x.tif")
    assert pixels(tiff(byte[..., :4], 2, [2])).shape == (4, 4, 3)


JPEG = saved(RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8), "JPEG")
MIDDLE = len(JPEG) // 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text", "not an image"),
        (b"<html>404</html>", "not an image"),
        (JPEG[:MIDDLE], "truncated or damaged JPEG"),
        (JPEG[:-2], "truncated or damaged JPEG"),
        (JPEG[:MIDDLE] + b"\xff\xd9" + JPEG[MIDDLE:], "truncated or damaged JPEG"),
        (saved(RGB, "JPEG", progressive=True)[:-60], "truncated"),
        (JPEG[:20], "(not an image|cannot be decoded)"),
        (saved(RGB, "PNG")[:-90], "cannot be decoded"),
        (saved(RGB, "PNG")[:20], "(not an image|cannot be decoded)"),
        (saved(RGB, "GIF")[:-300], "cannot be decoded"),
        (saved(RGB, "WEBP")[:-20], "(not an image|cannot be decoded)"),
        (saved(RGB, "AVIF")[:-50], "(AVIF|cannot be decoded)"),
        (saved(RGB, "BMP")[:-99], "cannot be decoded"),
        (saved(RGB, "TIFF")[:-99], "(TIFF|cannot be decoded)"),
        (saved(RGB, "TIFF", compression="tiff_lzw")[:60], "(TIFF|cannot be decoded)"),
        (b"MM\0+\0\x08\0\0" + bytes(7) + b"\x10", "a BigTIFF in big-endian order"),
    ],
)
def test_decode_bad_files_are_named_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^photos/a.jpg: .*{reason}") as caught:
        decode_bytes(data, "photos/a.jpg")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)


def test_decode_any_truncation_of_a_jpeg_is_an_error() -> None:
    for end in range(0, len(JPEG), 37):
        with pytest.raises(ImageError):
            decode_bytes(JPEG[:end], "x")


def test_decode_ignores_bytes_after_the_end_of_a_jpeg() -> None:
    assert np.array_equal(pixels(JPEG + b"appended" * 9), pixels(JPEG))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_decode_random_damage_is_an_image_or_an_image_error(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = saved(RGB, kind)
    for _ in range(40):
        damaged = bytearray(data)
        for offset in rng.integers(0, len(data), 6):
            damaged[offset] = rng.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert decode_bytes(bytes(damaged), "x").mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_decode_bombs_are_refused_before_decoding(kind: str) -> None:
    data = bytearray(saved(RGB, kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", 65000, 65000)
        import zlib

        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    else:
        data[6:10] = struct.pack("<HH", 65000, 65000)
    with pytest.raises(ImageError, match="too large"):
        decode_bytes(bytes(data), "x")


def test_decode_damaged_exif_keeps_the_pixels() -> None:
    data = saved(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense")
    assert pixels(data).shape == RGB.shape


def test_load_image_names_folder_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(ImageError, match=r"a\.jpg: a folder"):
        load_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"b\.jpg: cannot be read \(No such file"):
        load_image(tmp_path / "b.jpg")


def test_decode_in_threads_restores_the_warning_filters() -> None:
    before = warnings.filters[:]
    data = saved(RGB, "PNG")
    threads = [threading.Thread(target=lambda: [decode_bytes(data, "x") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_image_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.png", "too\nlarge")))
    assert (str(error), error.reason) == ("a.png: too large", "too large")


def test_simplejpeg_is_strict_by_default() -> None:
    with pytest.raises(ValueError, match="Premature end"):
        simplejpeg.decode_jpeg(JPEG[:MIDDLE])


def large_digits(width: int, height: int) -> tuple[bytes, np.ndarray]:
    """A smooth JPEG of digits, and its pixels as Pillow has them."""
    sheet = np.concatenate(load_digits().images[:12].reshape(3, 4, 8, 8).swapaxes(1, 2).reshape(3, 8, 32))
    image = Image.fromarray((sheet * 15).astype(np.uint8)).convert("RGB")
    data = saved(image.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=92)
    return data, np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("px", "area_fraction", "expected"),
    [
        (0, 1.0, (600, 800)),
        (64, 1.0, (75, 100)),
        (87, 1.0, (150, 200)),
        (64, 0.06, (300, 400)),
        (96, 0.06, (600, 800)),
    ],
)
def test_large_jpeg_is_reduced_no_further_than_its_crops_allow(
    px: int, area_fraction: float, expected: tuple[int, int]
) -> None:
    data, whole = large_digits(800, 600)
    decoded = decode_pixels(data, "a", px=px, area_fraction=area_fraction)
    assert decoded.shape == (*expected, 3)
    if expected == (600, 800):
        assert np.array_equal(decoded, whole)
    small = [
        np.asarray(Image.fromarray(sheet).resize((64, 48), Image.Resampling.BILINEAR), int)
        for sheet in (decoded, whole)
    ]
    assert abs(small[0] - small[1]).mean() < 1.5


def test_other_formats_keep_their_size() -> None:
    data = saved(Image.new("RGB", (400, 300), (7, 8, 9)), "PNG")
    assert np.array_equal(decode_pixels(data, "a", px=32), np.full((300, 400, 3), (7, 8, 9), np.uint8))
