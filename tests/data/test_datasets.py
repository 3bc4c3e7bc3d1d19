"""Reading and downloading data sets, on small files written here."""

from __future__ import annotations

import gzip
import hashlib
import itertools

import numpy as np
import pytest

from distill_jax.data import datasets, download, mnist
from distill_jax.data.__main__ import main

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(array):
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def small(tmp_path):
    """A folder with an MNIST of three training and two test images."""
    place = tmp_path / "mirror"
    place.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 3), ("t10k", 2)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n)
        (place / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (place / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return place


@pytest.fixture
def published(small, monkeypatch):
    """The small MNIST as if it were the published one."""
    digests = {
        path.name.removesuffix(".gz"): hashlib.sha256(gzip.decompress(path.read_bytes()))
        for path in small.iterdir()
    }
    monkeypatch.setattr(datasets, "_MNIST", {name: d.hexdigest() for name, d in digests.items()})
    return small


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DISTILL_JAX_DATA", raising=False)
    return tmp_path / "cache" / "distill_jax"


@pytest.mark.quick
def test_reads_images_and_labels(small):
    data = mnist(small)
    raw = gzip.decompress((small / IMAGES).read_bytes())[16:]
    want = np.array(list(raw), np.float64).reshape(3, 28, 28) / 255
    np.testing.assert_allclose(data["train"]["inputs"], want, rtol=1e-6)
    np.testing.assert_array_equal(data["train"]["labels"], [0, 1, 2])
    assert data["train"]["inputs"].dtype == np.float32
    assert data["test"]["labels"].dtype == np.int32
    assert data["test"]["inputs"].shape == (2, 28, 28)


def damage(name, change):
    def apply(place):
        path = place / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def rewrite(array):
    return lambda _: gzip.compress(idx(array))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda b: b[:-50], "damaged or truncated"),
        (IMAGES, lambda b: b[:200] + bytes([b[200] ^ 255]) + b[201:], "damaged or truncated"),
        (IMAGES, lambda _: b"<html>not found</html>", "damaged or truncated"),
        (IMAGES, lambda _: gzip.compress(b""), "must be an IDX file"),
        (IMAGES, rewrite(np.zeros(3)), "must be an IDX file .* 3 axes"),
        (IMAGES, lambda b: gzip.compress(gzip.decompress(b)[:-1]), "must hold 2352 bytes"),
        (IMAGES, rewrite(np.zeros((3, 8, 8))), "must hold images of 28 x 28"),
        (LABELS, rewrite(np.zeros(2)), "3 images .* 2 labels"),
        (LABELS, rewrite(np.array([0, 1, 10])), "labels 0 ... 9, got 10"),
    ],
)
def test_a_damaged_file_is_named(small, name, change, message):
    damage(name, change)(small)
    with pytest.raises(ValueError, match=message) as caught:
        mnist(small)
    assert name in str(caught.value)


def test_a_missing_file_is_named_with_the_command(small):
    (small / LABELS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{LABELS} is missing: run .*--to"):
        mnist(small)


def test_downloads_into_the_cache(published, own_cache, capsys):
    assert main(["mnist", "--url", published.as_uri()]) == 0
    assert str(own_cache / "mnist") in capsys.readouterr().out.replace("\n", "")
    np.testing.assert_array_equal(mnist()["test"]["labels"], [0, 1])
    assert sorted(p.name for p in (own_cache / "mnist").iterdir()) == sorted(
        p.name for p in published.iterdir()
    )


def test_downloads_only_what_is_missing_or_damaged(published, tmp_path):
    place = download("mnist", to=tmp_path / "here", url=published.as_uri())
    kept = (place / LABELS).stat().st_mtime_ns
    (place / IMAGES).write_bytes(b"damaged")
    download("mnist", to=place, url=published.as_uri() + "/")
    assert mnist(place)["train"]["inputs"].shape == (3, 28, 28)
    assert (place / LABELS).stat().st_mtime_ns == kept


def test_another_compression_of_the_same_content_is_accepted(published, tmp_path):
    path = published / IMAGES
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    place = download("mnist", to=tmp_path / "here", url=published.as_uri())
    assert mnist(place)["train"]["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("change", [lambda b: b[:-9], rewrite(np.ones((3, 28, 28)))])
def test_a_wrong_file_is_refused_and_leaves_nothing_behind(published, tmp_path, change):
    damage(IMAGES, change)(published)
    place = tmp_path / "here"
    with pytest.raises(ValueError, match=f"{IMAGES} is not the published file"):
        download("mnist", to=place, url=published.as_uri())
    assert not (place / IMAGES).exists()
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_broken_mirror_is_an_error_that_says_what_to_do(tmp_path, own_cache, capsys):
    assert main(["mnist", "--url", (tmp_path / "nowhere").as_uri()]) == 1
    assert "could not be fetched" in capsys.readouterr().err
    assert list((own_cache / "mnist").iterdir()) == []


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="name must be 'mnist'"):
        download("cifar")


def test_what_unpacks_to_far_more_is_not_unpacked(small, monkeypatch):
    """No more than the limit is read, for a sum or for an array."""
    monkeypatch.setattr(datasets, "MOST_UNPACKED", 3 << 20)
    path = small / IMAGES
    path.write_bytes(gzip.compress(bytes(16 << 20)))
    assert not datasets._content_has(path, hashlib.sha256(bytes(16 << 20)).hexdigest())
    assert sum(len(block) for block in itertools.islice(datasets._unzipped(path), 3)) <= 3 << 20
    with pytest.raises(ValueError, match="unpacks to more than 3145728 bytes.*run `python"):
        mnist(small)
