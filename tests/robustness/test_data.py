import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from ccn_kernels.robustness import data

FILES = list(data._MNIST)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder with MNIST's four files, of a few random images, whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in zip(FILES, (5, 5, 3, 3), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        arrays[name] = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = struct.pack(f">HBB{len(shape)}i", 0, 8, len(shape), *shape) + arrays[name].tobytes()
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(data._MNIST, name, hashlib.md5(content).hexdigest())
    return tmp_path, arrays


def test_digits_are_images_in_the_unit_interval_split_by_class():
    digits = data.load("digits")
    assert digits.train_images.shape == (1347, 1, 28, 28)
    assert digits.test_images.shape == (450, 1, 28, 28)
    assert digits.train_images.min() == 0
    assert digits.train_images.max() <= 1
    assert digits.test_labels.bincount().min() >= 43


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_idx_files(tiny_mnist, zipped):
    folder, arrays = tiny_mnist
    if zipped:
        for name in FILES:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    mnist = data.load("mnist", folder)
    assert torch.equal(mnist.train_images[:, 0], torch.from_numpy(arrays[FILES[0]]).float() / 255)
    assert torch.equal(mnist.test_labels, torch.from_numpy(arrays[FILES[3]]).long())


def test_a_missing_file_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=FILES[2]):
        data.load("mnist", folder)


def test_a_damaged_file_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / FILES[1]).write_bytes((folder / FILES[1]).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{FILES[1]} is damaged"):
        data.load("mnist", folder)


def test_a_truncated_archive_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / f"{FILES[0]}.gz").write_bytes(gzip.compress((folder / FILES[0]).read_bytes())[:-20])
    with pytest.raises(ValueError, match=rf"{FILES[0]}\.gz is damaged"):
        data.load("mnist", folder)


def test_what_is_unknown_or_not_given_is_said():
    with pytest.raises(ValueError, match="dataset must be one of"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="--data"):
        data.load("mnist")
