"""A folder tree of pictures that people really have, with everything that goes wrong in one."""

import io
import os

import numpy as np
from PIL import Image

REDS, BLUES = (180, 60, 60), (60, 60, 180)


def picture(rng, color, size=(50, 40)):
    noise = rng.integers(-40, 41, (size[1], size[0], 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def _bytes(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_good(root, rng):
    """Pictures of every mode: 20 labeled, 9 of the test set, 60 and more without a label."""
    for kind, color in (("cat", REDS), ("dog", BLUES)):
        for part, count in ((f"labeled/{kind}", 10), (f"test/{kind}", 4), ("unlabeled/x y", 30)):
            folder = root / part
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(rng, color).save(folder / f"{kind}{i}.png")
    spare = root / "unlabeled"
    red = picture(rng, REDS)
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(spare / "turned.jpg", exif=exif)
    red.quantize(16).save(spare / "palette.png")
    picture(rng, REDS).convert("L").save(spare / "grey.png")
    picture(rng, REDS).convert("LA").save(spare / "grey_alpha.png")
    picture(rng, REDS).convert("CMYK").save(spare / "ink.jpg")
    picture(rng, REDS).convert("RGBA").save(spare / "alpha.png")
    picture(rng, REDS).convert("1").save(spare / "bits.png")
    wide = np.asarray(picture(rng, REDS).convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(spare / "wide.png")
    Image.fromarray(wide).save(spare / "wide.tif")
    picture(rng, REDS).save(spare / "LOUD.JPG")
    picture(rng, REDS).save(spare / "ümläut 日本.png")
    picture(rng, REDS).save(os.fsencode(spare) + b"/not \xff utf8.png", "PNG")
    picture(rng, REDS).save(spare / "no_ending", "PNG")
    picture(rng, REDS).save(spare / "lies.png", "JPEG")  # a JPEG by its content
    picture(rng, REDS, (1, 900)).save(spare / "thread.png")
    (spare / "linked.png").symlink_to("alpha.png")
    (spare / "in_a_circle").symlink_to(".")


def write_bad(root, rng):
    """Files that give no picture; returns path below ``root`` -> part of the reason."""
    spare = root / "unlabeled"
    jpeg, png = (_bytes(picture(rng, REDS, (200, 200)), kind) for kind in ("JPEG", "PNG"))
    frames = [picture(rng, REDS) for _ in range(3)]
    moving = {"save_all": True, "append_images": frames[1:]}
    contents = {
        "empty.png": (b"", "empty (0 bytes)"),
        "cut.jpg": (jpeg[:3000], "truncated"),
        "cut.png": (png[:3000], "truncated"),
        "head_only.jpg": (jpeg[:20], "not an image"),
        "text.jpg": (b"not a picture at all", "not an image"),
        "page.png": (b"<!doctype html><title>404</title>", "not an image"),
        "zeros.bmp": (bytes(4000), "not an image"),
        "noise.webp": (rng.bytes(4000), "not an image"),
        "moving.gif": (_bytes(frames[0], "GIF", **moving), "3 pictures in one file"),
        "moving.webp": (_bytes(frames[0], "WEBP", **moving), "3 pictures in one file"),
        "moving.png": (_bytes(frames[0], "PNG", **moving), "3 pictures in one file"),
        "pages.tif": (_bytes(frames[0], "TIFF", **moving), "3 pictures in one file"),
        "float.tif": (_bytes(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        "deep.tif": (_bytes(Image.new("I", (9, 9), 70_000), "TIFF"), "32-bit"),
        "bomb.png": (_bomb(), "too large"),
    }
    expected = {}
    for name, (content, reason) in contents.items():
        (spare / name).write_bytes(content)
        expected[f"unlabeled/{name}"] = reason
    (spare / "broken_link.png").symlink_to(spare / "gone.png")
    (spare / "own_tail.png").symlink_to(spare / "own_tail.png")
    (root / "labeled" / "cat" / "bad.png").write_bytes(b"x")
    (root / "test" / "dog" / "bad.png").write_bytes(png[:100])
    return expected | {
        "unlabeled/broken_link.png": "no such file",
        "unlabeled/own_tail.png": "symbolic links",
        "labeled/cat/bad.png": "not an image",
        "test/dog/bad.png": "truncated",
    }


def write_others(root):
    """Files that are no pictures by their name; returns those of them that are not hidden."""
    names = ["notes.txt", "meta.json", "Thumbs.db", "README", "film.mp4", "a.jpg.part"]
    for name in (*names, ".DS_Store", "._a.png"):
        (root / "unlabeled" / name).write_bytes(b"some bytes")
    os.mkfifo(root / "unlabeled" / "pipe.png")
    return [*names, "pipe.png"]


def write_copies(root, rng):
    """The same picture more than once, in each way that matters."""
    labeled, spare, test = root / "labeled", root / "unlabeled", root / "test"
    pixels = {name: picture(rng, REDS) for name in ("leak", "own", "both", "twice")}
    pixels["leak"].save(test / "cat" / "leak.png")
    pixels["leak"].save(spare / "leak.bmp")  # the same pixels in another file
    pixels["leak"].save(labeled / "cat" / "leak.png")
    pixels["own"].save(labeled / "cat" / "own.png")
    pixels["own"].save(labeled / "cat" / "own_copy.png")
    pixels["own"].save(spare / "own.png")
    pixels["both"].save(labeled / "cat" / "both.png")
    pixels["both"].save(labeled / "dog" / "both.png")
    pixels["twice"].save(spare / "twice1.png")
    pixels["twice"].save(spare / "twice2.png")


def _bomb():
    """A PNG whose head says 30,000 x 30,000."""
    import struct
    import zlib

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99)))
