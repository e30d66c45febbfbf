import gzip
import hashlib
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ccn_kernels.robustness import data, tree
from ccn_kernels.robustness.data import cifar, mnist
from ccn_kernels.robustness.data.splits import TensorSplit, crop_and_flip, fitting, mixed

IDX = list(mnist.FILES)


def everything(split, **options):
    images, labels, index = next(split.batches(range(len(split)), len(split), **options))
    assert len(images) == len(labels) == len(index)
    return images, labels


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 28, 28)), ("digits32", (3, 32, 32))])
def test_digits_are_images_in_the_unit_interval_split_by_class(name, shape):
    digits = data.load(name)
    assert digits.shape == shape
    images, labels = everything(digits.train)
    assert images.shape == (1347, *shape)
    assert (images.min(), digits.classes) == (0, 10)
    assert images.max() <= 1
    assert len(digits.test) == 450
    assert digits.test.labels.bincount().min() >= 43
    assert torch.equal(labels, digits.train.labels)


def test_batches_are_what_was_asked_for_and_augmented_alike_by_a_seed():
    images, labels = torch.rand(10, 3, 8, 8), torch.arange(10)
    split = TensorSplit(images, labels, "cpu", augmented=True)
    order = torch.tensor([7, 1, 5, 0, 9])
    found = list(split.batches(order, 2))
    assert [len(x) for x, *_ in found] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, *_ in found]), images[order])
    assert torch.equal(torch.cat([y for _, y, _ in found]), labels[order])
    assert torch.equal(torch.cat([index for *_, index in found]), order)
    first, again, other = (torch.cat([x for x, *_ in split.batches(order, 2, seed)]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rest = torch.cat([x for x, *_ in split.batches(order[2:], 2, 1)])  # as a resumed run asks for it
    assert torch.equal(rest, first[2:])


def test_a_split_s_fingerprint_is_of_its_images_and_labels():
    images, labels = torch.rand(4, 1, 3, 3), torch.arange(4)
    other = images.clone()
    other[3, 0, 2, 2] += 1e-6
    splits = [TensorSplit(*pair, "cpu") for pair in ((images, labels), (other, labels), (images, labels.flip(0)))]
    assert len({split.fingerprint for split in splits}) == 3
    assert TensorSplit(images.clone(), labels.clone(), "cpu").fingerprint == splits[0].fingerprint


def test_seeds_are_mixed_into_one_that_every_generator_takes():
    found = [mixed(seed, epoch, first) for seed in (0, 1, 2**63 - 1) for epoch in (0, 1) for first in (0, 1, 999)]
    assert len(set(found)) == len(found)
    for seed in found:
        torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("shape", "size"), [((1, 28, 28), 250), ((3, 224, 224), 5), ((3, 2048, 2048), 1)])
def test_batches_of_large_images_are_smaller(shape, size):
    assert fitting(250, shape) == size


def test_crops_and_flips_are_windows_of_the_padded_image():
    images = torch.rand(64, 2, 6, 5) + 1
    found = crop_and_flip(images, 0)
    padded = torch.nn.functional.pad(images, (4,) * 4)
    flipped = 0
    for image, whole in zip(found, padded, strict=True):
        windows = [whole[:, y : y + 6, x : x + 5] for y in range(9) for x in range(9)]
        plain = any(torch.equal(image, window) for window in windows)
        mirrored = any(torch.equal(image, window.flip(2)) for window in windows)
        assert plain or mirrored
        flipped += mirrored and not plain
    assert 16 < flipped < 48


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder with MNIST's four files, of a few random images, whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in zip(IDX, (5, 5, 3, 3), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        arrays[name] = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = struct.pack(f">HBB{len(shape)}i", 0, 8, len(shape), *shape) + arrays[name].tobytes()
        (tmp_path / name).write_bytes(content)
        monkeypatch.setitem(mnist.FILES, name, hashlib.md5(content).hexdigest())
    return tmp_path, arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inner", [".", "mnist", "MNIST/raw"])
def test_mnist_is_read_from_idx_files(tiny_mnist, zipped, inner):
    folder, arrays = tiny_mnist
    home = folder / inner
    home.mkdir(parents=True, exist_ok=True)
    for name in IDX:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (home / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    found = data.load("mnist", folder)
    assert torch.equal(everything(found.train)[0][:, 0], torch.from_numpy(arrays[IDX[0]]).float() / 255)
    assert torch.equal(found.test.labels, torch.from_numpy(arrays[IDX[3]]).long())


def test_a_missing_file_of_mnist_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / IDX[2]).unlink()
    with pytest.raises(FileNotFoundError, match=IDX[2]):
        data.load("mnist", folder)


def test_a_damaged_file_of_mnist_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / IDX[1]).write_bytes((folder / IDX[1]).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{IDX[1]} is damaged"):
        data.load("mnist", folder)
    (folder / f"{IDX[1]}.gz").write_bytes(gzip.compress((folder / IDX[1]).read_bytes()))
    with pytest.raises(ValueError, match=rf"{IDX[1]}\.gz is damaged: the md5"):
        data.load("mnist", folder)


def test_a_truncated_archive_is_named(tiny_mnist):
    folder, _ = tiny_mnist
    (folder / f"{IDX[0]}.gz").write_bytes(gzip.compress((folder / IDX[0]).read_bytes())[:-20])
    with pytest.raises(ValueError, match=rf"{IDX[0]}\.gz is damaged"):
        data.load("mnist", folder)


RECORDS = 4  # a file of the tiny CIFAR-10


@pytest.fixture(params=["bin", "py"])
def tiny_cifar(request, tmp_path, monkeypatch):
    """CIFAR-10's six files in one of its layouts, of a few random records."""
    monkeypatch.setattr(cifar, "_RECORDS", RECORDS)
    rng = np.random.default_rng(0)
    folder = tmp_path / f"cifar-10-batches-{request.param}"
    folder.mkdir()
    records = {}
    for name in (*cifar.TRAIN, *cifar.TEST):
        records[name] = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        records[name][:, 0] %= 10
        if request.param == "bin":
            (folder / f"{name}.bin").write_bytes(records[name].tobytes())
        else:
            batch = {b"labels": records[name][:, 0].tolist(), b"data": records[name][:, 1:], b"batch_label": b"one"}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    for title, names in (("training", cifar.TRAIN), ("test", cifar.TEST)):
        rows = np.concatenate([records[name] for name in names])
        total = sum(int.from_bytes(hashlib.sha256(row.tobytes()).digest(), "big") for row in rows) % 2**256
        monkeypatch.setitem(cifar.CHECKSUMS, title, f"{total:064x}")
    return folder, records


@pytest.mark.parametrize("above", [True, False])
def test_cifar10_is_read_from_either_layout(tiny_cifar, above):
    folder, records = tiny_cifar
    found = data.load("cifar10", folder.parent if above else folder)
    images, labels = everything(found.train)
    rows = np.concatenate([records[name] for name in cifar.TRAIN])
    assert torch.equal(images, torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32)).float() / 255)
    assert labels.tolist() == rows[:, 0].tolist()
    assert found.train.augmented
    assert not found.test.augmented


def test_missing_and_damaged_files_of_cifar10_are_named(tiny_cifar):
    folder, _ = tiny_cifar
    path = next(folder.glob("data_batch_3*"))
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3"):
        data.load("cifar10", folder)
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"data_batch_3.* is damaged"):
        data.load("cifar10", folder)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"training images in .* are damaged"):
        data.load("cifar10", folder)


class Stranger:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


LABEL_300 = {b"labels": [300] * 10_000, b"data": np.zeros((10_000, 3072), np.uint8)}


@pytest.mark.parametrize(
    "content", [Stranger(), {b"labels": [1], b"data": Stranger()}, [1, 2], {b"labels": "x"}, LABEL_300]
)
def test_a_pickle_that_is_no_batch_runs_no_code(tmp_path, content):
    for name in (*cifar.TRAIN, *cifar.TEST):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="data_batch_1 is damaged, or no batch"):
        data.load("cifar10", tmp_path)


@pytest.fixture
def image_tree(tmp_path):
    """Two classes of solid images, red and blue, of several sizes and formats."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                size = tuple(rng.integers(20, 60, 2).tolist())
                suffix = ("JPEG", "png", "bmp")[number % 3]
                Image.new("RGB", size, color).save(tmp_path / split / name / f"{number}.{suffix}")
            (tmp_path / split / name / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tree_of_images_is_decoded_cropped_and_labelled(image_tree, workers):
    found = data.load("folder", image_tree, image_size=16, workers=workers)
    assert (found.classes, found.shape) == (2, (3, 16, 16))
    assert (len(found.train), len(found.test)) == (12, 8)
    for split, seed in ((found.test, None), (found.train, 3)):
        images, labels = everything(split, augment_seed=seed)
        assert images.shape[1:] == (3, 16, 16)
        assert torch.equal(images.mean((2, 3)).argmax(1), torch.where(labels == 0, 2, 0))  # blue, red
        assert torch.equal(labels, split.labels)
        assert labels[: len(labels) // 2].unique().numel() == 2  # the first ones are of every class


def test_augmented_images_depend_on_seed_and_index_alone(tmp_path):
    folder = tree.of_digits(tmp_path / "digits")
    train = data.load("folder", folder, image_size=24).train
    whole = torch.cat([x for x, *_ in train.batches(range(6), 6, 1)])
    parts = torch.cat([x for x, *_ in train.batches([4, 5, 0], 2, 1)])
    assert torch.equal(parts, whole[[4, 5, 0]])
    assert not torch.equal(whole, torch.cat([x for x, *_ in train.batches(range(6), 6, 2)]))


def test_a_corrupt_image_is_named_or_skipped(image_tree, caplog):
    path = image_tree / "val" / "red" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"red.1\.png cannot be decoded"):
        everything(data.load("folder", image_tree, image_size=16).test)
    test = data.load("folder", image_tree, image_size=16, on_corrupt="skip").test
    images, labels = everything(test)
    assert len(images) == len(labels) == 7
    assert test.corrupt == [path]
    assert "1.png cannot be decoded: skipped" in caplog.text


def test_a_batch_of_corrupt_images_is_empty(image_tree):
    for path in (image_tree / "val").glob("*/*"):
        path.write_bytes(b"no image")
    test = data.load("folder", image_tree, image_size=16, on_corrupt="skip").test
    found = list(test.batches(range(8), 3))
    assert [tuple(images.shape) for images, *_ in found] == [(0, 3, 16, 16)] * 3
    assert [len(labels) + len(index) for _, labels, index in found] == [0, 0, 0]
    assert len(test.corrupt) == 8


def test_a_tree_s_fingerprint_is_of_names_and_sizes_of_files_and_images(image_tree, tmp_path_factory):
    found = [data.load("folder", image_tree, image_size=size) for size in (16, 24)]
    elsewhere = shutil.copytree(image_tree, tmp_path_factory.mktemp("copy") / "tree")
    assert data.load("folder", elsewhere, image_size=16).identity == found[0].identity
    (elsewhere / "train" / "red" / "0.JPEG").write_bytes(b"shorter")
    (elsewhere / "val" / "red" / "1.png").rename(elsewhere / "val" / "red" / "one.png")
    found.append(data.load("folder", elsewhere, image_size=16))
    for split in ("train", "test"):
        assert len({getattr(each, split).fingerprint for each in found}) == 3


def test_what_is_wrong_with_a_tree_is_said(image_tree, tmp_path):
    with pytest.raises(ValueError, match="on_corrupt must be one of"):
        data.load("folder", image_tree, on_corrupt="ignore")
    (image_tree / "val" / "green").mkdir()
    with pytest.raises(ValueError, match=r"classes that .* has not: green"):
        data.load("folder", image_tree)
    with pytest.raises(FileNotFoundError, match="a folder of images for each class is expected"):
        data.load("folder", image_tree / "train")
    (tmp_path / "empty" / "train" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "val" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no images"):
        data.load("folder", tmp_path / "empty")


def test_what_is_unknown_or_not_given_is_said(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="--data"):
        data.load("mnist")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        data.load("cifar10", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin to test_batch\.bin"):
        data.load("cifar10", tmp_path)
