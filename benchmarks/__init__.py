"""The figures that the README claims, measured. ``make bench``, or ``python -m benchmarks [--quick] [--json FILE]``."""
