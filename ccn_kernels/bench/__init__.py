"""Throughput: workloads, providers, honest timing, records (`ccn bench`); an optional extra."""
