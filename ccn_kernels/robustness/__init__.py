"""What the paper did with compact networks: data, training, attacks. An optional extra: ``ccn-kernels[robustness]``."""
