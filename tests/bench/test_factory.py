"""A user's model: loaded from a file or a module, copied, and every mistake named."""

import sys

import pytest
import torch
from user_models import written

from ccn_kernels.bench import factory


@pytest.fixture
def models(tmp_path):
    return written(tmp_path)


def test_a_file_and_a_module_are_loaded(models):
    assert len(factory.load(models("small"), "2x3x4x4").model) == 4
    subject = factory.load("ccn_kernels.models:vgg11", "1x3x32x32")
    assert subject.run().shape == (1, 10)


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "beside_it.py").write_text("from torch import nn\nlayer = nn.Linear(3, 2)\n")
    (tmp_path / "with_neighbour.py").write_text("from beside_it import layer\n")
    assert factory.load(f"{tmp_path / 'with_neighbour.py'}:layer", "1x3").run().shape == (1, 2)


def test_inputs_of_the_factory_go_where_the_model_takes_them(models):
    by_place, by_name = (factory.load(models(name)) for name in ("tokens", "named_tokens"))
    assert (len(by_place.args), by_place.kwargs) == (1, {})
    assert set(by_name.kwargs) == {"ids", "scale"}
    assert by_name.run()["mean"].shape == (2, 6)


def test_the_asked_dtype_and_format_reach_the_model_and_its_floating_inputs(models):
    subject = factory.load(models("small"), "2x3x4x4", dtype=torch.float64, memory_format=torch.channels_last)
    for tensor in (subject.args[0], subject.model[0].weight):
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert factory.load(models("tokens"), dtype=torch.float64).args[0].dtype == torch.long


def test_the_users_model_is_left_alone(models):
    factory.load(models("kept"), "1x3x4x4", dtype=torch.float64)
    original = sys.modules["models"].KEPT
    assert original[0].weight.dtype == torch.float32
    assert not any(module.training for module in original.modules())


@pytest.mark.parametrize(
    ("name", "input", "message"),
    [
        (None, None, "--mine must be FILE.py:FACTORY"),
        ("missing", "1x3", "--mine: .* has no 'missing'"),
        ("number", "1x3", "--mine: number in .* must be a function that returns a model, got a int"),
        ("nothing", "1x3", r"--mine: .* must return an nn.Module, or \(module, inputs\), got a NoneType"),
        ("broken", "1x3", "--mine: .*:broken fails: KeyError: 'no such checkpoint'"),
        ("wants", "1x3", "--mine: .*:wants fails: TypeError: wants.* missing 1 required"),
        ("small", None, "--input: .* give their shape, like 8x3x224x224"),
        ("tokens", "1x3", "--input 1x3: is the factory's to say"),
        ("small", "3xbig", "--input must be a shape like 8x3x224x224, got '3xbig'"),
        ("small", "2x5x4x4", r"--input 2x5x4x4: the model refuses it: RuntimeError: [^\n]*channels"),
        ("bare_tokens", "2x5", r"--input 2x5: the model refuses it: .* let the factory return \(model, inputs\)"),
    ],
)
def test_mistakes_are_named(models, name, input, message):
    with pytest.raises(ValueError, match=message):
        factory.load(models(name) if name else "models.py", input)


def test_places_that_cannot_be_imported_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"--mine: there is no file .*absent\.py"):
        factory.load(f"{tmp_path / 'absent.py'}:net", "1x3")
    with pytest.raises(ValueError, match="--mine: no_such_package cannot be imported: ModuleNotFoundError"):
        factory.load("no_such_package:net", "1x3")
    bad = tmp_path / "bad_syntax.py"
    bad.write_text("def net(:\n")
    with pytest.raises(ValueError, match=r"bad_syntax\.py cannot be imported: SyntaxError"):
        factory.load(f"{bad}:net", "1x3")
