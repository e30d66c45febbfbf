"""The parts of the GPU record: what is measured, and with what."""

# Where a part's rows come from: module and function. In the order in which parts run: what must be right comes first.
ROWS = {
    "tests": ("checks", "tests"),
    "sanitizer": ("checks", "sanitizer"),
    "forward": ("forward", "rows"),
    "training": ("training", "rows"),
    "ablation": ("ablation", "rows"),
    "networks": ("networks", "rows"),
    "host": ("host", "rows"),
}
NAMES = tuple(ROWS)
