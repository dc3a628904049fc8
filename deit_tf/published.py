"""The published weights, for those who have a network."""

import hashlib
import http.client
import os
import pathlib
import urllib.request

import tqdm

from deit_tf.config import InputError

BASE = "https://dl.fbaipublicfiles.com/deit/"

# Name of the model -> its file; after the last dash the first digits of its SHA-256.
FILES = {
    "deit_tiny_patch16_224": "deit_tiny_patch16_224-a1311bcf.pth",
    "deit_small_patch16_224": "deit_small_patch16_224-cd65a155.pth",
    "deit_base_patch16_224": "deit_base_patch16_224-b5f2ef4d.pth",
    "deit_base_patch16_384": "deit_base_patch16_384-8de9b5d1.pth",
    "deit_tiny_distilled_patch16_224": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    "deit_small_distilled_patch16_224": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit_base_distilled_patch16_224": "deit_base_distilled_patch16_224-df68dfff.pth",
    "deit_base_distilled_patch16_384": "deit_base_distilled_patch16_384-d0272ac0.pth",
    "regnety_160": "regnety_160-a5fe301d.pth",
}

_SECONDS_OF_SILENCE = 30
_CHUNK = 2**20


def cache_dir():
    """Where downloads are kept: deit_tf in $XDG_CACHE_HOME or ~/.cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "deit_tf"


def fetch(name, base=BASE):
    """The published file of a model, downloaded into the cache unless it lies there.

    Args:
      name: a key of `FILES`.
      base: URL of the folder that holds the files.

    Returns:
      Its path; its checksum has been compared with the one in its name.

    Raises:
      InputError: it cannot be fetched, or is not what was published.
    """
    path = cache_dir() / FILES[name]
    if path.exists():
        _verify(path, path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the cache {path.parent} cannot be written: {error}") from error
    try:
        _download(base + path.name, path)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise InputError(
            f"{base}{path.name} cannot be downloaded ({reason}); fetch it where there is a network,"
            f" and give --weights={path.name}"
        ) from error
    return path


def _verify(file, path):
    """Raises InputError, and removes the file, where it has not the checksum of its name."""
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    wanted = path.stem.rsplit("-", 1)[1]
    if not found.startswith(wanted):
        file.unlink()
        raise InputError(
            f"{path.name} has the checksum {found[: len(wanted)]}, not {wanted}: it was not the"
            " published file, and is removed; start again to fetch it anew"
        )


def _download(url, path):
    """Fetches a file with a progress bar; whole and verified, or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with (
            urllib.request.urlopen(url, timeout=_SECONDS_OF_SILENCE) as answer,
            open(part, "wb") as file,
            tqdm.tqdm(
                total=int(answer.headers.get("Content-Length") or 0) or None,
                desc=path.name,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if answer.length:
                raise OSError(f"{answer.length} bytes were left when it ended")
        _verify(part, path)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
