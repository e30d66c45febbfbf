"""`make readme`: the README's text on speed and its pictures, made from the newest records in benchmarks/results.

With --check nothing is written, and the exit status is 1 where the text would change.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plot
from reading import Record, Row, arrows, by_workload, channels, fastest, markdown, newest, ratio, select
from targets import targets

from ccn_kernels.files import write

ROOT = Path(__file__).parent.parent
START, END = "<!-- speed: made by make readme -->", "<!-- end of speed -->"
STEPS = ("forward", "training")
# Above, below, and the goals (forward, training) that are set on a GPU for the geometric mean.
GPU_RATIOS = {
    "ccn / F.conv2d": ("ccn", "conv", ("≤ 0.85", "≤ 1.00")),
    "ccn / without bias": ("ccn", "conv_nobias", ("≤ 1.00", None)),
    "two-branch / ccn": ("two_branch", "ccn", ("≥ 4", "≥ 3")),
    "compiled / ccn": ("two_branch_compiled", "ccn", (None, None)),
    "max-autotune / ccn": ("two_branch_max_autotune", "ccn", ("≥ 1.35", "≥ 1.25")),
}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README would change")
    args = parser.parse_args(arguments)
    records = [newest(root / "benchmarks" / "results", gpu=gpu) for gpu in (False, True)]
    if not any(records):
        print("benchmarks/results has no record yet: the README stays as it is")
        return
    for record in records:
        if record and not args.check:
            plot.draw(record, root / "docs")
    path = root / "README.md"
    old = path.read_text()
    new = replaced(old, speed(*records, root))
    if args.check and new != old:
        raise SystemExit("README.md does not say what benchmarks/results say: make readme")
    if not args.check:
        write(path, lambda temporary: temporary.write_text(new))


def replaced(text: str, between: str) -> str:
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md lacks the lines {START!r} and {END!r}")
    return f"{before}{START}\n\n{between}\n\n{END}{after}"


def speed(cpu: Record | None, gpu: Record | None, root: Path) -> str:
    blocks = []
    if cpu:
        blocks += ["### On a CPU", cpu_table(cpu), caption(cpu), target_table(cpu), *shown(cpu, root)]
    if gpu:
        tables = [block for step in STEPS for block in (f"{step.capitalize()}:", gpu_table(gpu, step))]
        blocks += ["### On a GPU", *tables, caption(gpu), *shown(gpu, root)]
    else:
        blocks.append("No GPU has been measured yet.")
    return "\n\n".join(block for block in blocks if block)


def cpu_table(record: Record) -> str:
    panels = {step: by_workload(record.main_rows("kernel-notes", step)) for step in STEPS}
    pairs = (("two_branch", "conv"), ("two_branch_compiled", "conv"), ("ccn", "conv"), ("ccn", "two_branch"))
    lines = []
    for key in dict.fromkeys(key for panel in panels.values() for key in panel):
        for step, panel in panels.items():
            rows = panel.get(key, [])
            plain = fastest(rows, "conv")
            milliseconds = plain["median_us"] / 1e3 if plain else None
            lines.append([arrows(key[0]), key[1], step, milliseconds, *(ratio(rows, *pair) for pair in pairs)])
    names = ("two-branch / F.conv2d", "compiled / F.conv2d", "ccn / F.conv2d", "ccn / two-branch")
    return markdown(lines, ["workload", "batch", "pass", "F.conv2d ms", *names])


def target_table(record: Record) -> str:
    said = {None: None, True: "yes", False: "no"}
    lines = [[found.name, found.goal, found.measured, said[found.met]] for found in targets(record)]
    return markdown(lines, ["ccn / F.conv2d, geometric mean", "goal", "measured", "met"])


def gpu_table(record: Record, step: str) -> str:
    """A line a workload, then the geometric means and what they should be."""
    panel = by_workload(record.main_rows("kernel-notes", step))
    lines: list[list[Any]] = []
    for (workload, batch), rows in panel.items():
        plain = fastest(rows, "conv")
        ratios = [ratio(rows, above, below) for above, below, _ in GPU_RATIOS.values()]
        lines.append([arrows(workload), batch, plain and plain["median_us"], *ratios, share(rows, workload, step)])
    means = [mean(line[column] for line in lines) for column in range(3, 3 + len(GPU_RATIOS))]
    goals = [goals[STEPS.index(step)] for _, _, goals in GPU_RATIOS.values()]
    lines += [["**geometric mean**", "", "", *means, ""], ["**goal**", "", "", *goals, ""]]
    return markdown(lines, ["workload", "batch", "F.conv2d µs", *GPU_RATIOS, "of the floor (goal)"])


def share(rows: list[Row], workload: str, step: str) -> str | None:
    """Ours, in percent of what the device allows; goals are set for the forward pass."""
    ours = fastest(rows, "ccn")
    if not ours or ours["share_of_floor"] is None:
        return None
    inputs, outputs = channels(workload)
    goal = 80 if inputs == 3 else 65 if outputs >= 256 else 55 if outputs >= 128 else 40
    return f"{ours['share_of_floor']:.0%}" + (f" ({goal}%)" if step == "forward" else "")


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.geometric_mean(known) if known else None


def caption(record: Record) -> str:
    where = record.environment
    turns = {row["rounds"] for step in STEPS for row in record.main_rows("kernel-notes", step)}
    rounds = " or ".join(map(str, sorted(turns)))
    how = "replayed from CUDA graphs" if record.timing == "graph" else "as they are called"
    facts = [
        where["device"],
        f"{where['threads']} threads ({where['capability']})" if not record.gpu else f"driver {where['driver']}",
        record.dtype,
        f"PyTorch {where['torch']}",
        f"Triton {where['triton']}" if record.gpu else None,
        f"ccn_kernels {where['ccn_kernels']}",
        "malloc's page churn off" if where.get("malloc") else None,
        where["date"],
    ]
    text = f"""
        Each provider in its faster form and memory format, medians of {rounds} interleaved rounds, {how}; training is
        forward plus the gradients of the input and of every parameter. The two-branch module is the paper's, eager;
        compiled is the same under `torch.compile`. {", ".join(fact for fact in facts if fact)}:
        `benchmarks/results/{record.path.name}`. {noise(record)} `ccn bench` measures yours."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def noise(record: Record) -> str:
    """How far measurements of one thing lie apart."""
    rows = [row for step in STEPS for row in record.main_rows("kernel-notes", step) if row["median_us"]]
    spreads = [(row["p80_us"] - row["p20_us"]) / row["median_us"] for row in rows]
    if not spreads:
        return ""
    said = f"In half of the rows p20 and p80 lie less than {statistics.median(spreads):.1%} of the median apart"
    keys = ("workload", "batch", "pass", "memory_format")
    plain = [select(rows, {"provider": "conv", "variant": variant}) for variant in (None, "again")]
    once, again = ({tuple(row[key] for key in keys): row["median_us"] for row in found} for found in plain)
    apart = [abs(again[key] / once[key] - 1) for key in again if key in once]
    return said + (f"; `F.conv2d`, measured twice, differs by up to {max(apart):.0%} from itself." if apart else ".")


def shown(record: Record, root: Path) -> list[str]:
    """The speed-ups' picture, and links to the others, as far as they are drawn."""
    drawn = [kind for kind in plot.PICTURES if (root / "docs" / f"{record.name}-{kind}.png").exists()]
    links = [f"[{kind}](docs/{record.name}-{kind}.png)" for kind in drawn if kind != "speedup"]
    picture = [f"![Speed-up over every peer, layer by layer](docs/{record.name}-speedup.png)"] * ("speedup" in drawn)
    return [*picture, *([f"More pictures: {', '.join(links)}."] if links else [])]


if __name__ == "__main__":
    main()
