"""The report: what it says, that it loads nothing, and that it is gone on with."""

import importlib
import json
import sys
from html.parser import HTMLParser

import pytest
import torch
from small import fails, succeeds

from ccn_kernels.robustness import data, own, report, runs
from ccn_kernels.robustness.data.splits import TensorSplit
from ccn_kernels.robustness.report import wording
from ccn_kernels.robustness.report.collect import Settings, _printed, first

RADII = {"linf": (0.05, 0.1), "l2": (0.5,)}
FEW = {"count": 12, "subset": 6, "queries": 5, "hops": 2}
VOID = {"meta", "img", "br", "link", "input"}
FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear({inputs}, {classes}){more})
"""


def linear(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()


class Page(HTMLParser):
    """What a page is made of; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        assert tag != "img" or dict(attributes).get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


@pytest.fixture
def made(few_digits, tmp_path):
    subjects = [own.Own(linear(seed), f"digest {seed}", title) for seed, title in ((0, "one & only"), (1, "CCN"))]
    report.run(subjects, few_digits._replace(name="mnist"), Settings(RADII, **FEW), tmp_path)
    return tmp_path


def test_the_page_says_all_and_loads_nothing(made):
    text = (made / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:image/", "#network-")) for source in page.sources)
    assert not {"script", "link", "iframe"} & {*page.tags}
    assert "@import" not in text
    assert "url(" not in text
    assert page.tags.count("img") == 2 * 3
    said = " ".join(page.text)
    found = json.loads((made / "report.json").read_text())
    for network in found["networks"]:
        assert network["title"] in said
        assert all(row["why"] in said for row in network["masking"])
        for line in network["attacks"]["linf"] + network["attacks"]["l2"]:
            assert line["title"] in said
    assert "one & only" in said
    assert "one &amp; only" in text
    assert found["environment"]["packages"]["torch"] in said
    assert 'name="viewport"' in text
    assert "@media print" in text


def test_json_and_markdown_hold_the_same_numbers(made):
    found = json.loads((made / "report.json").read_text())
    text = (made / "report.md").read_text()
    for network in found["networks"]:
        assert network["images"] == 12
        assert network["minimum"]["linf"].keys() == {"0.05", "0.1"}
        for epsilon, minimum in network["minimum"]["linf"].items():
            assert minimum <= min(line["alone"].get(epsilon, 100) for line in network["attacks"]["linf"][:3])
            assert minimum <= network["white-box minimum"]["linf"][epsilon]
            assert f"{minimum:.1f}" in text
        assert f"## {network['title']}: {wording.verdict(network['verdict'])}" in text
        assert len(network["masking"]) == 11
    transfers = [
        line for network in found["networks"] for line in network["attacks"]["linf"] if "transfer" in line["title"]
    ]
    assert [line["settings"]["digests"] for line in transfers] == [
        [other["weights"]] for other in reversed(found["networks"])
    ]
    assert found["settings"]["epsilons"]["linf"] == [0.05, 0.1]


def test_a_network_of_which_nothing_is_left_has_a_report_without_nan(few_digits, tmp_path):
    wrong = TensorSplit(few_digits.test.images, (linear(0)(few_digits.test.images).argmax(1) + 1) % 10, "cpu")
    subjects = [own.Own(linear(0), "0", "never right")]
    report.run(subjects, few_digits._replace(test=wrong), Settings({"linf": (0.05,)}, **FEW), tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    (network,) = json.loads(text)["networks"]
    assert network["clean"] == network["minimum"]["linf"]["0.05"] == 0
    assert network["attacks"]["linf"][3]["images_per_second"] is None  # there was nothing to attack


def test_the_paper_s_number_stands_beside_ours():
    assert _printed("CCN", "mnist", (0.1, 0.25, 0.3)) == {0.1: 96.99, 0.3: 81.38}
    assert _printed("BN", "mnist", (0.1,)) == {0.1: 88.48}
    assert _printed("CCN", "digits", (0.1,)) == _printed("mine", "mnist", (0.1,)) == {}


def test_a_report_is_gone_on_with(few_digits, tmp_path, monkeypatch):
    subjects, settings = [own.Own(linear(0), "0", "mine")], Settings({"linf": (0.05,)}, **FEW)
    report.run(subjects, few_digits, settings, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "attacks").iterdir()}
    first = json.loads((tmp_path / "report.json").read_text())
    report.run(subjects, few_digits, settings, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "attacks").iterdir()} == written
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["networks"] == first["networks"]  # the checks, too, have a seed


@pytest.mark.parametrize(("side", "count"), [(16, 40), (64, 40), (128, 12), (512, 8)])
def test_fewer_images_are_probed_where_they_are_large(side, count):
    split = TensorSplit(torch.zeros(40, 1, side, side), torch.arange(40) % 2, "cpu")
    images, labels = first(data.Dataset("x", 2, split, split), 200)
    assert len(images) == len(labels) == count


def test_a_network_that_is_none_is_refused_before_anything_is_attacked(few_digits, tmp_path):
    subjects = [own.Own(linear(0), "0", "sound"), own.Own(linear(0).append(torch.nn.Softmax(1)).eval(), "1", "soft")]
    with pytest.raises(ValueError, match="soft: the model returns probabilities"):
        report.run(subjects, few_digits, Settings(RADII, **FEW), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("wrong", "match"), [
    ({"epsilons": {"l2": (1.0,)}}, "epsilons must have radii in linf"),
    ({"count": 0}, "count must be 1 or more"), ({"subset": -1}, "subset must be 0 or more"),
])  # fmt: skip
def test_wrong_settings_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        Settings(**{"epsilons": RADII, **wrong})


SMALL = ["--count", 4, "--black-box", 2, "--queries", 3, "--hops", 0, "--epsilons", "8/255", "--l2"]


def test_checkpoints_are_judged_by_the_command(few_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: few_digits._replace(name="digits"))
    for variant in ("sm", "ccn"):
        succeeds(capsys, "train", "--epochs", 1, "--batch-size", 32, "--variant", variant, "--out", tmp_path / variant)
    printed = succeeds(capsys, "report", tmp_path / "sm", tmp_path / "ccn", *SMALL, "--out", tmp_path / "out")
    assert "report.html" in printed
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [network["title"] for network in found["networks"]] == ["SM", "CCN"]
    assert found["networks"][0]["training"]["config"]["epochs"] == 1
    assert "8/255" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "ccn" / runs.RECORD).unlink()
    assert "all networks must be of one data set" in fails(capsys, "report", tmp_path / "sm", tmp_path / "ccn")


@pytest.fixture
def tree(tmp_path):
    """A tree of two classes, bright and dark."""
    from PIL import Image

    for split in ("train", "val"):
        for place, (name, level) in enumerate((("bright", 180), ("dark", 70))):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            for index in range(5):
                color = (level + 5 * index, level, level - place)
                Image.new("RGB", (16, 16), color).save(tmp_path / "tree" / split / name / f"{index}.png")
    return tmp_path / "tree"


def factory(tmp_path, more="", inputs=768, classes=2):
    path = tmp_path / "factory.py"
    path.write_text(FACTORY.format(inputs=inputs, classes=classes, more=more))
    return f"{path}:make"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_user_s_own_network_is_judged(tree, tmp_path, capsys, suffix):
    weights, state = tmp_path / f"weights{suffix}", {"1.weight": torch.ones(2, 768) / 76.8, "1.bias": torch.zeros(2)}
    state["1.weight"][1] *= -1
    state["1.bias"] += torch.tensor([-5.0, 5.0])
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, weights)
    else:
        from safetensors.torch import save_file

        save_file(state, weights)
    target = factory(tmp_path)
    succeeds(capsys, "report", "--model", target, "--weights", weights, "--data", tree, "--image-size", 16, *SMALL,
             "--out", tmp_path / "out")  # fmt: skip
    (network,) = json.loads((tmp_path / "out" / "report.json").read_text())["networks"]
    assert (network["title"], network["clean"]) == ("make", 100)
    assert network["training"] == {}
    assert own.load(target, weights).digest != own.load(target).digest


def test_a_network_whose_code_has_changed_is_judged_anew(tree, tmp_path, capsys, monkeypatch):
    """Wherever that code lies: here in a module that the factory's file imports."""
    monkeypatch.syspath_prepend(tmp_path)
    helper = tmp_path / "prepared.py"
    path = tmp_path / "importing.py"
    path.write_text("import torch, prepared\n\ndef make():\n    return prepared.Net()\n")
    digests = []
    for offset in (-0.5, 5.0, 5.0):
        helper.write_text(
            "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
            f"        score = x.mean((1, 2, 3)) + {offset}\n        return torch.stack([score, -score], 1)\n"
        )
        for name in ("prepared", "importing"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        succeeds(capsys, "report", "--model", f"{path}:make", "--data", tree, "--image-size", 16, *SMALL,
                 "--out", tmp_path / "out")  # fmt: skip
        (network,) = json.loads((tmp_path / "out" / "report.json").read_text())["networks"]
        digests.append((network["weights"], network["clean"]))
    assert digests[1] == digests[2]
    assert [clean for _, clean in digests] == [100, 25, 25]  # one of the four images that are judged is bright


def test_files_for_networks_of_the_digits_are_refused(tmp_path, capsys):
    succeeds(capsys, "train", "--epochs", 1, "--batch-size", 200, "--out", tmp_path / "sm")
    for command in ("report", "attack", "certify"):
        assert "which need no files" in fails(capsys, command, tmp_path / "sm", "--data", tmp_path)


def test_what_is_wrong_with_a_user_s_network_is_said(tree, tmp_path, capsys):
    common = ["--data", tree, "--image-size", 16, "--out", tmp_path / "out"]
    assert "a network must be given" in fails(capsys, "report", *common)
    assert "--weights goes with --model" in fails(capsys, "report", tmp_path, "--weights", tmp_path, *common)
    assert "must be FILE.py:FACTORY" in fails(capsys, "report", "--model", "x", *common)
    target = factory(tmp_path)
    assert "there is no file" in fails(capsys, "report", "--model", target, "--weights", tmp_path / "no.pt", *common)
    (tmp_path / "bad.pt").write_bytes(b"nonsense")
    assert "is damaged" in fails(capsys, "report", "--model", target, "--weights", tmp_path / "bad.pt", *common)
    torch.save({"2.weight": torch.ones(1)}, tmp_path / "other.pt")
    assert "does not fit" in fails(capsys, "report", "--model", target, "--weights", tmp_path / "other.pt", *common)
    assert "data folder must be given" in fails(capsys, "report", "--model", target)
    assert "holds neither" in fails(capsys, "report", "--model", target, "--data", tmp_path)
    soft = factory(tmp_path, more=", torch.nn.Softmax(1)")
    assert "make: the model returns probabilities" in fails(capsys, "report", "--model", soft, *common)
    assert "3 classes, the data set 2" in fails(capsys, "report", "--model", factory(tmp_path, classes=3), *common)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "text"), [(None, ""), (float("nan"), ""), (1234, "1,234"), (12.34, "12.3"),
                                             (0.0, "0.0"), (0.0004, "0.0004"), (1e5, "100,000")])  # fmt: skip
def test_numbers_are_short(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.3, "0.3"), (1.0, "1"), (0.25, "0.25")]
)
def test_radii_are_told_as_they_are_meant(value, text):
    assert wording.radius(value) == text
