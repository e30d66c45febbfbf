"""What `make gpu` does, part by part: programs, suites of `ccn bench`, and diagnostics of our kernels."""

# Where the rows of programs and diagnostics come from: module and function.
ROWS = {
    "tests": ("checks", "tests"),
    "sanitizer": ("checks", "sanitizer"),
    "host": ("host", "rows"),
    "tiles": ("tiles", "rows"),
    "gradients": ("gradients", "rows"),
    "ablation": ("ablation", "rows"),
    "trace": ("trace", "rows"),
}

# What `ccn bench` measures, as options of ccn_kernels.bench.settings; compilers take their time, so they come last.
ALL = ("conv", "conv_nobias", "two_branch", "cudnn_epilogue", "cudnn_frontend", "ccn", "ccn_cuda")
COMPILED = (*ALL, "two_branch_compiled", "two_branch_max_autotune")
THROUGHPUT = {
    "kernel-notes": [{"passes": ("forward", "training", "backward"), "providers": ALL}],
    "networks": [{"suites": ("networks",)}],
    "dtypes": [
        {"dtypes": ("float16", "tf32"), "providers": ALL, "workloads": "^(3-64@32|64-128@16|256-256@8|64-64@56)$"},
        {"formats": ("contiguous",), "providers": ALL},
    ],
    "suites": [{"suites": ("vgg11-table10", "resnet50", "mnist", "grouped", "linear", "vgg11"), "providers": ALL}],
    "growth": [
        {
            "suites": tuple(f"growth-{axis}" for axis in ("batch", "image", "channels", "kernel")),
            "providers": ("conv", "ccn"),
        }
    ],
    "compiled": [
        {"providers": COMPILED, "workloads": "^(3-64@32|64-128@16|256-256@8|512-512@4|64-64@56|256-256@14)$"},
        {"providers": COMPILED},
    ],
}

# In the order in which parts run: what must be right comes first, what says most next.
NAMES = ("tests", "sanitizer", "kernel-notes", "networks", "host", "trace", "ablation", "dtypes", "gradients", "tiles",
         "suites", "growth", "compiled")  # fmt: skip
