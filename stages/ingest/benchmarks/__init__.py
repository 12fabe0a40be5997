"""Published benchmarks on disk, each in its own layout, to the one table that editors and judges read."""
