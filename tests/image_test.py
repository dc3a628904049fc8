"""The twin without TensorFlow sees what the evaluation sees."""

import dataclasses
import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from deit_tf import inference, preprocess
from deit_tf.manifest import InputError, Manifest
from serving import image

PHOTOS = sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
MANIFEST = Manifest("deit", 224, 0.875, (), (), "", (), (), {}, {})


def _png(pixels):
    """A PNG of 16 bits: uint16 [h, w, channels], which Pillow writes for grey alone."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _encoded(form, mode="RGB", size=(213, 142), **options):
    """A photograph as a file of some form, mode and size."""
    picture = Image.open(PHOTOS[1]).convert("RGB").resize(size).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(picture.convert("L").rotate(180))
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _sixteen(channels):
    photo = np.asarray(Image.open(PHOTOS[0]).resize((80, 60)), np.uint16)
    return _png(np.concatenate([photo, photo], axis=-1)[..., :channels] * 257)


FILES = {
    **{path.name: path.read_bytes for path in PHOTOS},
    "grey jpeg": lambda: _encoded("JPEG", "L"),
    "cmyk jpeg": lambda: _encoded("JPEG", "CMYK"),
    "progressive jpeg": lambda: _encoded("JPEG", progressive=True),
    "jpeg 4:2:2": lambda: _encoded("JPEG", subsampling=1),
    "png": lambda: _encoded("PNG"),
    "png with alpha": lambda: _encoded("PNG", "RGBA"),
    "grey png with alpha": lambda: _encoded("PNG", "LA"),
    "palette with alpha": lambda: _encoded("PNG", "P", transparency=bytes(range(256))),
    "black and white": lambda: _encoded("PNG", "1"),
    "webp": lambda: _encoded("WEBP"),
    "webp with alpha": lambda: _encoded("WEBP", "RGBA", exact=True),
    "16 bits grey": lambda: _sixteen(1),
    "16 bits": lambda: _sixteen(3),
    "16 bits with alpha": lambda: _sixteen(4),
    "portrait": lambda: _encoded("PNG", size=(100, 333)),
    "small": lambda: _encoded("PNG", size=(31, 17)),
    "narrow": lambda: _encoded("PNG", size=(3, 400)),
}


@pytest.fixture(scope="module")
def files():
    return {name: make() for name, make in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_decodes_to_the_same_bits(name, files):
    found = np.asarray(image.decode(files[name]))
    np.testing.assert_array_equal(found, preprocess.decode(files[name]).numpy())


def _expected(encoded, size, fraction):
    return preprocess.center_crop(preprocess.decode(encoded), size, fraction).numpy()


@pytest.mark.parametrize(("size", "fraction"), [(224, 0.875), (384, 1.0), (64, 0.9)])
def test_sees_the_same_to_half_a_grey_level(size, fraction, files):
    told = dataclasses.replace(MANIFEST, image_size=size, crop_fraction=fraction)
    for name, encoded in files.items():
        found = image.view(encoded, told)
        assert found.dtype == np.uint8
        assert found.shape == (size, size, 3)
        off = np.abs(found - _expected(encoded, size, fraction))
        # Pillow clips between both directions, which only pure black and white show.
        assert off.mean() <= (2.0 if name == "black and white" else 0.5), name


def test_a_wrong_filter_is_further_off_than_half_a_grey_level(files):
    for path in PHOTOS:
        picture = image.decode(files[path.name])
        scaled = [side * 256 // min(picture.size) for side in picture.size]
        left, top = ((side - 224) // 2 for side in scaled)
        for wrong in (Image.Resampling.BILINEAR, Image.Resampling.NEAREST):
            found = picture.resize(scaled, wrong).crop((left, top, left + 224, top + 224))
            off = np.abs(np.asarray(found) - _expected(files[path.name], 224, 0.875))
            assert off.mean() > 0.5


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_the_geometry_is_the_published(path, golden):
    found = image.view(path, MANIFEST).astype(int)
    off = np.abs(found - golden[f"eval/{path.name}/224"])
    assert off.max() <= 1
    assert off.mean() <= 1e-3


@pytest.mark.parametrize("size", [(8, 8), (40, 31), (31, 40), (333, 50), (7, 1000), (1000, 777)])
def test_the_crop_alone_is_resized_as_if_it_were_all(size):
    """Column by column and then row by row, whatever Pillow's version prefers."""
    noise = np.random.RandomState(0).randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
    for side, fraction in ((32, 0.875), (16, 1.0), (24, 0.9)):
        scaled = [one * int(side / fraction) // min(size) for one in size]
        whole = Image.fromarray(noise).resize((scaled[0], size[1]), Image.Resampling.BICUBIC)
        whole = whole.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (round((one - side) / 2) for one in scaled)
        expected = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
        found = image.center_crop(Image.fromarray(noise), side, fraction)
        off = np.abs(found - expected)
        assert off.max() <= 2
        assert off.mean() <= 0.02


def test_the_network_answers_the_same_for_both(micro_run, files):
    found = inference.open_run(micro_run)
    size, fraction = found.manifest.image_size, found.manifest.crop_fraction
    ours = np.stack([image.view(encoded, found.manifest) for encoded in files.values()])
    theirs = np.stack([_expected(encoded, size, fraction) for encoded in files.values()])
    one, other = (np.asarray(found.answer(each)["logits"]) for each in (ours, theirs))
    np.testing.assert_array_equal(one.argmax(-1), other.argmax(-1))
    photographs = slice(0, len(PHOTOS))
    error = np.abs(one[photographs] - other[photographs]).max()
    assert error <= 5e-3 * np.abs(other[photographs]).max()


def test_arrays_of_the_networks_size_are_taken_as_they_are():
    pixels = np.random.RandomState(0).randint(0, 256, (224, 224, 3)).astype(np.uint8)
    assert image.view(pixels, MANIFEST) is pixels
    file = io.BytesIO()
    Image.fromarray(pixels[:100]).save(file, "PNG")
    np.testing.assert_array_equal(
        image.view(pixels[:100], MANIFEST), image.view(file.getvalue(), MANIFEST)
    )


def test_what_is_wrong_is_said(files, tmp_path):
    photo, png = files["china.jpg"], files["png"]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    moving = _encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (213, 142))])
    cases = [
        (photo[: len(photo) // 2], "it is damaged: image file is truncated"),
        (png[: len(png) // 2], "it is damaged"),
        (bytes(flipped), "it is damaged"),
        (b"", "neither JPEG, PNG nor WebP"),
        (b"hello " * 99, "neither JPEG, PNG nor WebP"),
        (_encoded("BMP"), "neither JPEG, PNG nor WebP"),
        (_encoded("GIF"), "neither JPEG, PNG nor WebP"),
        (moving, "animated WebP"),
        (tmp_path / "none.jpg", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (np.zeros((9, 9)), r"float64 \[9, 9\] is no image; give uint8"),
        (np.zeros((9, 9, 4), np.uint8), r"uint8 \[9, 9, 4\] is no image"),
        (np.zeros((0, 9, 3), np.uint8), "is no image"),
        (None, "is no image"),
    ]
    for wrong, says in cases:
        with pytest.raises(InputError, match=says):
            image.view(wrong, MANIFEST)
    with pytest.raises(InputError, match="this version knows bicubic"):
        image.view(photo, dataclasses.replace(MANIFEST, filter="lanczos"))


def test_a_pixel_bomb_is_refused_by_its_header():
    def header(side):
        return _png(np.zeros((1, 1, 3))).replace(
            struct.pack(">II", 1, 1), struct.pack(">II", side, side)
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for side in (20_000, 10_000):  # Pillow refuses the one by itself, and warns of the other
            with pytest.raises(InputError, match="too many pixels; at most 50000000 are taken"):
                image.decode(_rechecked(header(side)))
    with pytest.raises(InputError, match="at most 100 are taken, and it has 110"):
        image.decode(_encoded("PNG", size=(10, 11)), 100)
    assert image.decode(_encoded("PNG", size=(10, 10)), 100).size == (10, 10)


def _rechecked(png):
    """A PNG whose header's check sum is right again."""
    return png[:29] + struct.pack(">I", zlib.crc32(png[12:29])) + png[33:]


def test_a_long_strip_costs_what_it_has():
    strip = Image.fromarray(np.full((400_000, 1, 3), 7, np.uint8))
    assert (image.center_crop(strip, 224, 0.875) == 7).all()
    assert (image.center_crop(strip.transpose(Image.Transpose.ROTATE_90), 224, 0.875) == 7).all()
