"""A folder of images: every file is a row as a viewer shows it, or is named with the reason why not."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel.errors import InputError
from securemodel.files.rows import Choice, Rows, Wanted, open_rows

Image = pytest.importorskip("PIL.Image")
GRADIENT = np.arange(0, 60, dtype=np.uint8).reshape(4, 5, 3)


def opened(folder: Path, *shape: int, **choice) -> Rows:
    return open_rows(folder, [Wanted(shape or (3, 4, 5), torch.float32)], Choice(**choice), 2)


def test_a_folder_of_images(tmp_path: Path, joined) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "b.png")
    Image.fromarray(GRADIENT[:, :, 0]).save(tmp_path / "a.PNG")
    rows = opened(tmp_path)
    made = joined(rows)
    assert rows.count == 2 and list(rows.names()) == ["a.PNG", "b.png"] and rows.id_name == "file_name"
    assert torch.equal(made[1], torch.from_numpy(GRADIENT).permute(2, 0, 1) / 255)
    assert torch.equal(made[0], made[0][:1].expand(3, 4, 5)), "gray as RGB"
    gray = joined(opened(tmp_path, 1, 4, 5))
    assert torch.equal(gray[0, 0], made[0, 0])
    small = joined(opened(tmp_path, 2, 3))
    assert small.shape == (2, 2, 3) and 0 <= small.min() and small.max() <= 1
    assert opened(tmp_path, id="file_name").ids and not rows.ids


@pytest.mark.parametrize("end", [".png", ".bmp", ".tif", ".tiff", ".TIF", ".webp", ".gif", ".jpg", ".jpeg", ".JPEG"])
def test_every_kind_of_image_is_a_row(tmp_path: Path, joined, end: str) -> None:
    options = {"lossless": True} if end == ".webp" else {"quality": 100} if end.lower().startswith(".j") else {}
    Image.fromarray(GRADIENT[:, :, 0]).convert("RGB").save(tmp_path / f"x{end}", **options)
    expected = torch.from_numpy(GRADIENT[:, :, 0]) / 255
    torch.testing.assert_close(
        joined(opened(tmp_path, 1, 4, 5))[0, 0], expected, atol=0.01 if options.get("quality") else 1e-6, rtol=0
    )


def test_what_is_left_out_is_told_with_the_reason(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", ".c.png", "._a.png"):
        Image.fromarray(GRADIENT).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "scan").write_text("not an image")
    (tmp_path / "more").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    rows = opened(tmp_path)
    assert list(rows.names()) == ["a.png", "b.PNG", "link.png"]
    said = "\n".join(rows.notes)
    for reason in ("hidden file: ._a.png, .c.png", "a folder, which is not looked into: more", "link to nothing: gone.png",
                   "no ordinary file: pipe.png", "not named like an image"):  # fmt: skip
        assert reason in said
    assert "notes.txt, scan" in said and "3 images, in the order of their names" in said


def test_a_folder_without_images_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.jfif").write_bytes(b"")
    with pytest.raises(InputError, match=r"no rows\n(.*\n)*.*left out, not named like an image: .*x\.jfif"):
        opened(tmp_path)


def test_the_order_is_told_where_numbers_have_another(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.fromarray(GRADIENT).save(tmp_path / f"img{number}.png")
    rows = opened(tmp_path)
    assert list(rows.names()) == ["img1.png", "img10.png", "img2.png"]
    assert "img10.png comes before img2.png" in rows.notes[0]
    assert "comes before" not in opened(folder_of(tmp_path / "x", GRADIENT)).notes[0]


def folder_of(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir()
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index}.png")
    return folder


DEEP = np.array([[51400, 25700], [12850, 0]], np.uint16)


@pytest.mark.parametrize("end", [".png", ".tif"])
def test_gray_of_16_bits_keeps_its_depth(tmp_path: Path, joined, end: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"x{end}")
    expected = torch.from_numpy(DEEP.astype(np.float32)) / 65535
    torch.testing.assert_close(joined(opened(tmp_path, 2, 2))[0], expected)
    torch.testing.assert_close(joined(opened(tmp_path, 3, 2, 2))[0], expected.expand(3, 2, 2))
    assert joined(opened(tmp_path, 1, 1, 1)).item() == pytest.approx(DEEP.mean() / 65535, abs=1e-4)


def test_few_bits_and_palettes_are_what_a_viewer_shows(tmp_path: Path, joined) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(0, 4, 2, 2, b"\0\x0f" + b"\0\xf0"))
    palette = Image.new("P", (2, 2))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putdata([0, 1, 1, 0])
    palette.save(tmp_path / "c.png")
    expected = torch.tensor([[0.0, 1], [1, 0]])
    assert torch.equal(joined(opened(tmp_path, 2, 2)), expected.expand(3, 2, 2))


@pytest.mark.parametrize("tag, turned", [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)),
                                         (8, lambda a: np.rot90(a)), (2, lambda a: a[:, ::-1])])  # fmt: skip
@pytest.mark.parametrize("end", [".png", ".jpg", ".tif", ".webp"])
def test_images_are_turned_as_their_tag_says(tmp_path: Path, joined, tag: int, turned, end: str) -> None:
    array = np.repeat(np.repeat(np.array([[0, 80, 160], [255, 200, 40]], np.uint8), 16, 0), 16, 1)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(array).convert("RGB").save(
        tmp_path / f"x{end}", exif=exif, **({"quality": 100} if end in (".jpg", ".webp") else {})
    )
    expected = torch.from_numpy(turned(array).copy()) / 255
    made = joined(opened(tmp_path, *expected.shape))[0]
    torch.testing.assert_close(made[8::16, 8::16], expected[8::16, 8::16], atol=0.03, rtol=0)


def test_a_transparency_that_hides_nothing_is_dropped(tmp_path: Path, joined) -> None:
    for index, mode in enumerate(("RGBA", "LA")):
        image = Image.fromarray(GRADIENT[:, :, 0]).convert(mode)
        image.save(tmp_path / f"{index}.png")
    made = joined(opened(tmp_path, 1, 4, 5))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0, 0], torch.from_numpy(GRADIENT[:, :, 0]) / 255)


def png(color: int, depth: int, width: int, height: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG from the bytes of its rows, each behind a 0, and perhaps the color that is transparent."""
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    head += part(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def tiff(depth: int, kind: int, data: bytes) -> bytes:
    """A gray TIFF of one row of two numbers, of `depth` bits and of this kind: 1 without a sign, 2 with one."""
    tags = {256: 2, 257: 1, 258: depth, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(name: str, mode: str, **options):
    return lambda folder: Image.new(mode, (5, 4)).save(folder / name, **options)


REFUSED = {
    "transparent": (saved("x.png", "RGBA"), "transparent in places"),
    "transparent gray": (saved("x.png", "LA"), "transparent in places"),
    "a transparent color": (saved("x.png", "RGB", transparency=(0, 0, 0)), "transparent in places"),
    "a transparent level": (saved("x.png", "L", transparency=0), "transparent in places"),
    "a transparent palette": (saved("x.gif", "P", transparency=0), "transparent in places"),
    "inks": (saved("x.jpg", "CMYK"), "mode CMYK"),
    "whole numbers": (saved("x.tif", "I"), "mode I "),
    "real numbers": (saved("x.tif", "F"), "mode F "),
    "16 bits a color": (lambda f: (f / "x.png").write_bytes(png(2, 16, 1, 1, b"\0" + bytes(6))), "16 bits a color"),
    "16 bits gray, transparent": (lambda f: (f / "x.png").write_bytes(png(4, 16, 1, 1, b"\0" + bytes(4))), "16 bits a color"),
    "16 bits gray, a transparent level": (
        lambda f: (f / "x.png").write_bytes(png(0, 16, 1, 1, b"\0" + bytes(2), bytes(2))), "transparent in places"),
    "12 bits gray": (lambda f: (f / "x.tif").write_bytes(tiff(12, 1, b"\xff\xf0\x00\x00")), "12 bits a color"),
    "16 bits with a sign": (lambda f: (f / "x.tif").write_bytes(tiff(16, 2, bytes(4))), "have a sign"),
    "8 bits with a sign": (lambda f: (f / "x.tif").write_bytes(tiff(8, 2, bytes(2))), "have a sign"),
    "pictures that move": (lambda f: Image.new("L", (5, 4)).save(
        f / "x.gif", save_all=True, append_images=[Image.new("L", (5, 4), 255)]), "2 pictures"),
    "pages": (lambda f: Image.new("L", (5, 4)).save(
        f / "x.tif", save_all=True, append_images=[Image.new("L", (5, 4), 255)]), "2 pictures"),
    "no image": (lambda f: (f / "x.png").write_text(f"not an image {98765.25}"), "not an image that can be read"),
    "nothing": (lambda f: (f / "x.png").write_text(""), "not an image that can be read"),
    "another kind by content": (lambda f: Image.new("L", (5, 4)).save(f / "x.png", format="PPM"), "not an image that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_images_without_a_single_meaning_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, says = REFUSED[kind]
    make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        opened(tmp_path)
    assert str(next(tmp_path.iterdir())) in str(caught.value) and "→" in str(caught.value)


def test_an_image_that_is_cut_off_is_found_before_anything_else(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for index in range(9):
        Image.fromarray(noise).save(tmp_path / f"{index}.jpg")
    whole = (tmp_path / "7.jpg").read_bytes()
    (tmp_path / "7.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"not an image that can be read.*\n.*7\.jpg"):
        opened(tmp_path)


def test_names_that_cannot_be_written_into_a_table(tmp_path: Path) -> None:
    for name in (b"a\xff.png", b"a\nb.png"):
        path = tmp_path / os.fsdecode(name)
        Image.fromarray(GRADIENT).save(path, format="PNG")
        with pytest.raises(InputError, match="cannot be printed"):
            opened(tmp_path)
        path.unlink()


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        opened(tmp_path)
    image = Wanted((1, 4, 5), torch.float32)
    for wanted in (
        [Wanted((2, 4, 5), torch.float32)],
        [Wanted((4,), torch.float32)],
        [image] * 2,
        [Wanted((1, 4, 5), torch.int64)],
    ):
        with pytest.raises(InputError, match="cannot be an input"):
            open_rows(tmp_path, wanted, Choice(), 2)
    for choice in (Choice(divide_by=255), Choice(("a",)), Choice(id="patient")):
        with pytest.raises(InputError, match="images take no"):
            open_rows(tmp_path, [image], choice, 2)


@pytest.mark.parametrize("error", [TypeError, KeyError, MemoryError, SyntaxError, zlib.error, OSError])
def test_whatever_a_decoder_raises_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    def convert(*args, **options):
        raise error("98765.25")

    Image.fromarray(GRADIENT).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(InputError, match=r"not an image that can be read.*\n.*x\.png") as caught:
        opened(tmp_path)
    assert "98765.25" not in str(caught.value)
