"""
Measures costs: one command for each benchmark, ``python -m benchmarks.NAME``, and ``python -m benchmarks`` for all.
"""
