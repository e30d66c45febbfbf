"""scikit-learn's digits as a tree of image files: table 5 has something to run on where ILSVRC-2012 is not."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from . import data

SIZE = 32


def of_digits(path: Path) -> Path:
    """Writes ``train/CLASS/N.png`` and ``val/CLASS/N.png`` unless they are there; returns ``path``."""
    if path.exists():
        return path
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    digits = data.load("digits32")
    for name, split in (("train", digits.train), ("val", digits.test)):
        images, labels, _ = next(split.batches(range(len(split)), len(split)))
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = temporary / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png")
    temporary.rename(path)
    return path
