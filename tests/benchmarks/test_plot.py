"""plot.py: each picture from planted records, and what is left out."""

import bars
import curves
import plot
import pytest
import reading
import style


def heights(axis):
    """By legend entry."""
    return {group.get_label(): [round(bar.get_height(), 3) for bar in group] for group in axis.containers}


@pytest.mark.parametrize("gpu", [False, True])
def test_every_picture_that_the_record_has_rows_for(everything, tmp_path, capsys, gpu):
    plot.main([str(everything(gpu)), "--out", str(tmp_path / "docs")])
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    device = "nvidia-h200" if gpu else "amd-epyc"
    kinds = {"speedup", "roofline", "memory"} | ({"growth"} if not gpu else set())
    assert names == {f"{device}-{kind}.png" for kind in kinds}
    assert all((tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert ("growth.png is left out: nvidia-h200-0.1.0.json has no growth rows" in capsys.readouterr().out) == gpu


def test_the_same_record_gives_the_same_bytes(save, row, tmp_path):
    record = reading.load(save([row(), row("conv")]))
    first, second = (plot.draw(record, tmp_path / folder)[0].read_bytes() for folder in ("a", "b"))
    assert first == second


def test_nothing_is_drawn_of_nothing(save, tmp_path, capsys):
    plot.main([str(save([])), "--out", str(tmp_path / "docs")])
    assert not (tmp_path / "docs").exists()
    assert capsys.readouterr().out.count("is left out") == len(plot.PICTURES)


def test_a_file_that_is_no_record_is_named(tmp_path):
    with pytest.raises(SystemExit, match="plot: ") as raised:
        plot.main([str(tmp_path / "missing.json")])
    assert str(raised.value).endswith("missing.json: there is no such file")


def test_speedups_are_of_the_faster_form_and_format(save, row):
    rows = [row("conv", 300.0), row("conv", 150.0, memory_format="contiguous"), row("conv", 10.0, variant="again"),
            row("two_branch", 400.0, variant="ones"), row("two_branch", 350.0, variant="pool"),
            row("two_branch_compiled", None, variant="ones", failure="no compiler"),
            row("ccn", 100.0), row("ccn", 110.0, memory_format="contiguous"), row("ccn", 5.0, backend="reference"),
            row("ccn", 8.0, variant="relu"), row("conv", 90.0, workload="only forward")]  # fmt: skip
    figure = bars.speedup(reading.load(save(rows)))
    forward, training = figure.axes
    assert heights(forward) == {"F.conv2d": [1.5, 0.0], "two-branch": [3.5, 0.0]}
    assert heights(training) == {}
    assert "AMD EPYC, 2 threads, float32, 2026-11-24" in figure.get_suptitle()


def test_memory_is_shown_over_plain(save, row):
    peaks = (("conv", None, 100.0), ("ccn", None, 105.0), ("ccn", "relu apart", 130.0))
    shared = {"suite": "networks", "workload": "vgg11", "pass": "training"}
    rows = [row(provider, variant=variant, peak_mb=peak, **shared) for provider, variant, peak in peaks]
    (axis,) = bars.memory(reading.load(save(rows))).axes
    assert heights(axis) == {"ccn_kernels, ReLU apart": [1.3], "ccn_kernels": [1.05]}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["vgg11\ntraining step\n100 MB"]


def test_the_roof_is_the_measured_ceilings(save, row):
    rows = [row("ccn", 1000.0, flop=10**8, bytes=10**7)]
    (axis,) = curves.roofline(reading.load(save(rows))).axes
    roof, point = axis.lines
    assert max(roof.get_ydata()) == 2.5e11
    assert roof.get_ydata()[0] == pytest.approx(2e10 * roof.get_xdata()[0])
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([10.0], [1e11])


def test_no_roof_without_a_ceiling_of_the_dtype(save, row):
    ceilings = {"bytes_per_s": 1e9, "flop_per_s": {"float64": 1e9}}
    with pytest.raises(style.NotMeasured, match="ceiling"):
        curves.roofline(reading.load(save([row()], ceilings=ceilings)))


@pytest.mark.parametrize(
    ("key", "axis", "size"),
    [
        (("64-64@32", 128), "batch", 128),
        (("64-64@224", 1), "image", 224),
        (("1024-1024@32", 1), "channels", 1024),
        (("64-64@32 11x11", 1), "kernel", 11),
        (("64-64@32 k5", 1), "kernel", 5),
        (("64-64@32", 1), "kernel", 3),
    ],
)
def test_where_a_workload_lies_on_its_axis(key, axis, size):
    assert curves.size(key, axis) == size


def test_growth_has_time_and_memory_of_both_passes(everything):
    figure = curves.growth(reading.load(everything()))
    time, memory = figure.axes[:2]
    assert [list(line.get_xdata()) for line in time.lines] == [[1, 8, 64, 512]] * 4
    assert time.lines[0].get_ydata()[0] < time.lines[1].get_ydata()[0]  # a training step takes longer
    assert memory.lines[0].get_ydata()[-1] == pytest.approx(512 * 32**2 * 128 * 4 / 1e6)


def test_where_batches_differ_costs_are_an_images(save, row):
    rows = [row(batch=batch, workload=f"64-64@{size}", suite="growth-image", peak_mb=64.0)
            for size, batch in ((8, 64), (224, 2))]  # fmt: skip
    time, memory = curves.growth(reading.load(save(rows))).axes  # the other axes are not there
    assert (time.get_ylabel(), memory.get_ylabel()) == ("time, ms an image", "peak memory, MB an image")
    assert [list(line.get_ydata()) for line in memory.lines if len(line.get_ydata())] == [[1.0, 32.0]]
