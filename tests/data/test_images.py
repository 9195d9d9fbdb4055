"""Decoding: every kind of picture becomes the right RGB square, or is named with the reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdfm_ray.data.images import (
    Unreadable,
    decode,
    decode_files,
    quiet_pillow,
    resize,
    shorter_side,
    suffixes,
)
from kdfm_ray.types import UserError

ORIENTATION = 0x0112


def photo(width=60, height=40):
    """A smooth RGB picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 255 * y / height
    blue = 127 + 100 * np.sin(x / 9) * np.cos(y / 7)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def flat(path, mode, color, **options):
    Image.new(mode, (8, 8), color).save(path, **options)
    return decode(path, 4)


@pytest.mark.parametrize(
    ("mode", "color", "ending", "expected"),
    [
        ("RGB", (10, 200, 30), ".png", (10, 200, 30)),
        ("L", 77, ".png", (77, 77, 77)),
        ("1", 1, ".png", (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), ".png", (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), ".png", (255, 255, 255)),  # clear: the white behind it
        ("RGBA", (200, 0, 0, 51), ".png", (244, 204, 204)),  # a fifth of it, on white
        ("LA", (100, 0), ".png", (255, 255, 255)),
        ("I;16", 0x8040, ".png", (128, 128, 128)),
        ("I;16", 0xFFFF, ".tif", (255, 255, 255)),
        ("I", 0x4000, ".tif", (64, 64, 64)),
        ("CMYK", (0, 0, 0, 0), ".tif", (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), ".tif", (0, 255, 255)),
        ("RGB", (10, 200, 30), ".bmp", (10, 200, 30)),
        ("L", 9, ".gif", (9, 9, 9)),
    ],
)
def test_modes(tmp_path, mode, color, ending, expected):
    found = flat(tmp_path / f"a{ending}", mode, color)
    assert found.shape == (4, 4, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (4, 4, 3)))


def test_palette_with_and_without_a_clear_color(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 50, 60, 70])
    image.save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 4)[0, 0].tolist() == [50, 60, 70]
    image.save(tmp_path / "b.png", transparency=1)
    assert decode(tmp_path / "b.png", 4)[0, 0].tolist() == [255, 255, 255]
    image.save(tmp_path / "c.png", transparency=bytes([255, 0]))  # one alpha a palette entry
    assert decode(tmp_path / "c.png", 4)[0, 0].tolist() == [255, 255, 255]


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    found = flat(tmp_path / "a.jpg", "CMYK", (255, 0, 0, 0), quality=100)
    np.testing.assert_allclose(found.reshape(-1, 3).mean(0), (0, 255, 255), atol=3)


def save_frames(path, count=3, **options):
    first, *more = (Image.new("RGB", (8, 8), (60 * i, 9, 9)) for i in range(count))
    first.save(path, save_all=True, append_images=more, **options)


@pytest.mark.parametrize("ending", [".gif", ".png", ".webp", ".tif"])
def test_animations_and_files_of_several_pages_are_refused(tmp_path, ending):
    save_frames(tmp_path / f"a{ending}")
    with pytest.raises(Unreadable, match="3 pictures in one file"):
        decode(tmp_path / f"a{ending}", 4)
    save_frames(tmp_path / f"one{ending}", count=1, lossless=True)
    assert decode(tmp_path / f"one{ending}", 4)[0, 0].tolist() == [0, 9, 9]


def test_a_photo_with_a_second_one_for_depth_is_a_photo(tmp_path):
    save_frames(tmp_path / "a.jpg", count=2, format="MPO", quality=100)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg", 4)[0, 0], [0, 9, 9], atol=3)


def test_the_content_of_a_file_gives_what_the_file_gives(tmp_path):
    photo().save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(decode(content, 16), decode(tmp_path / "a.jpg", 16))
    assert shorter_side(content) == shorter_side(tmp_path / "a.jpg") == 40
    assert shorter_side(b"no image") is None


def test_deep_color_is_scaled_not_clipped(tmp_path):
    """16-bit RGB as PNG, written by hand, since Pillow writes none."""
    import struct
    import zlib

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">3H", 0x2000, 0x8040, 0xFFFF) * 8
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 8))
    assert decode(content + chunk(b"IEND", b""), 4)[0, 0].tolist() == [0x20, 0x80, 0xFF]


def test_what_pillow_would_warn_of_is_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    photo(60, 40).save(tmp_path / "a.png")  # more pixels than that, fewer than twice as many
    with quiet_pillow():
        assert decode(tmp_path / "a.png", 8).shape == (8, 8, 3)
        photo(100, 50).save(tmp_path / "b.png")
        with pytest.raises(Unreadable, match="too large"):
            decode(tmp_path / "b.png", 8)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_undone(tmp_path, orientation, ending):
    path = tmp_path / f"a{ending}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo(48, 48).save(path, exif=exif, quality=100)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB").resize((16, 16), 2))
    np.testing.assert_allclose(decode(path, 16).astype(int), expected, atol=1)


def test_broken_exif_does_not_hide_a_good_picture(tmp_path):
    photo().save(tmp_path / "good.png")
    photo().save(tmp_path / "a.png", exif=b"Exif\0\0garbage, not a TIFF head")
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 8), decode(tmp_path / "good.png", 8))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (41, 67), (20, 20), (16, 9), (16, 16)])
def test_shorter_side_then_center(tmp_path, size):
    """Against the plain way: resize the whole picture, then cut the center."""
    image = photo(*size)
    image.save(tmp_path / "a.png")
    s, (width, height) = 16, size
    scale = s / min(width, height)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - s) // 2, (whole.height - s) // 2
    expected = np.asarray(whole.crop((left, top, left + s, top + s))).astype(int)
    found = decode(tmp_path / "a.png", s).astype(int)
    # The plain way rounds to whole pixels; the picture's steepest slope is 16 a pixel.
    assert np.abs(found - expected).max() <= 16 * 0.5 / min(1, scale) + 1
    assert np.abs(found - expected).mean() < 5


def test_center_is_the_center(tmp_path):
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", 10)
    assert (found == 255).all()


def test_a_large_jpeg_decoded_small_looks_the_same(tmp_path):
    photo(1024, 768).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as file:
        full = file.resize((32, 32), Image.Resampling.BILINEAR, box=(128, 0, 896, 768))
    difference = decode(tmp_path / "a.jpg", 32).astype(int) - np.asarray(full)
    assert np.abs(difference).max() <= 4


def test_files_keep_their_order_and_tell_progress(tmp_path):
    paths = []
    for i in range(100):
        Image.new("L", (6, 6), i).save(path := tmp_path / f"{99 - i}.png")
        paths.append(path)
    events = []
    images = decode_files(paths, 6, events.append)
    assert images.shape == (100, 6, 6, 3)
    assert images[:, 0, 0, 0].tolist() == list(range(100))
    assert events[-1] == {"stage": "data", "phase": "decode", "step": 100, "total": 100}
    assert [e["step"] for e in events] == sorted({e["step"] for e in events})


def test_unreadable_files_are_all_found_and_named(tmp_path):
    good = tmp_path / "good.jpg"
    photo(200, 200).save(good)
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    Image.new("I", (4, 4), 70_000).save(tmp_path / "deep.tif")
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: reading would wait for ever
    names = ["good.jpg", "text.jpg", "empty.png", "cut.jpg", "link.jpg", "float.tif", "deep.tif"]
    names.append("pipe.png")
    with pytest.raises(UserError) as caught:
        decode_files([tmp_path / name for name in names], 8)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 8 images cannot be read:"
    reasons = ["not an image", "empty (0 bytes)", "truncated", "no such file", "floating-point"]
    reasons += ["32-bit", "no ordinary file"]
    for line, name, reason in zip(lines[1:8], names[1:], reasons, strict=True):
        assert line.startswith(f"  {tmp_path / name}: ")
        assert reason in line
    assert lines[8].startswith("Mend them")


def test_ten_unreadable_files_are_named_the_rest_counted(tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(73)]
    with pytest.raises(UserError, match=re.escape("73 of 73")) as caught:
        decode_files(paths, 8)
    lines = str(caught.value).splitlines()
    assert [line.split("/")[-1][:6] for line in lines[1:11]] == [p.name for p in paths[:10]]
    assert lines[11].strip() == "and 63 more"


def test_endings():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tiff", ".bmp", ".gif"} <= suffixes()
    assert not {".pdf", ".eps", ".h5", ".mpg", ".txt", ".mp4"} & suffixes()


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, channels), dtype=np.uint8)
    found = resize(images, 7)
    for image, small in zip(images, found, strict=True):
        expected = Image.fromarray(image.squeeze()).resize((7, 7), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(small.squeeze(), np.asarray(expected))


def test_resize_to_the_same_size_only_orders_memory():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    found = resize(images.transpose(0, 2, 3, 1), 8)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB"])
def test_transparency_in_bands_is_that_of_the_whole(tmp_path, monkeypatch, mode):
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 256, (40, 50, 4), dtype=np.uint8))
    options = {"transparency": 3} if mode == "P" else {}
    image = clear.convert("P") if mode == "PA" else clear.convert(mode)
    if mode == "PA":
        options = {"transparency": bytes(range(256))}
    if mode == "RGB":
        options = {"transparency": image.getpixel((0, 0))}
    path = tmp_path / "a.png"
    image.save(path, **options)
    with Image.open(path) as file:
        above = file.convert("RGBA")
    white = Image.new("RGBA", above.size, "white")
    whole = np.asarray(Image.alpha_composite(white, above).convert("RGB"))[:, 5:45]
    monkeypatch.setattr("kdfm_ray.data.images._BAND_PIXELS", 50 * 7)
    np.testing.assert_array_equal(decode(path, 40), whole)
    assert (np.asarray(above)[..., 3] < 255).any(), "or nothing was tried"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's figures")
def test_a_large_transparent_image_takes_two_copies_of_its_pixels(tmp_path):
    pixels = 5000 * 5000
    Image.new("RGBA", (5000, 5000), (200, 0, 0, 51)).save(tmp_path / "a.png", compress_level=1)
    program = (
        "import re, sys; from pathlib import Path; from kdfm_ray.data.images import decode; "
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', "
        "Path('/proc/self/status').read_text())[1]); "
        "decode(Path(sys.argv[2]), 32); before = peak(); "
        "print(decode(Path(sys.argv[1]), 32)[0, 0].tolist(), peak() - before)"
    )
    photo().save(tmp_path / "small.png")
    files = [str(tmp_path / "a.png"), str(tmp_path / "small.png")]
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, check=True
    )
    color, _, kib = done.stdout.strip().rpartition(" ")
    assert color == "[244, 204, 204]"
    assert 6 < 1024 * int(kib) / pixels < 10, "bytes a pixel"


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded(tmp_path):
    photo(height=400, width=600).save(tmp_path / "a.png")
    with pytest.raises(Unreadable, match=r"600 x 400 pixels, more than data\.max_pixels = 200,000"):
        decode(tmp_path / "a.png", 16, 200_000)
    assert decode(tmp_path / "a.png", 16, 240_000).shape == (16, 16, 3)
    photo(height=400, width=600).save(tmp_path / "a.jpg")  # read at an eighth: 75 x 50 pixels
    assert decode(tmp_path / "a.jpg", 16, 200_000).shape == (16, 16, 3)
