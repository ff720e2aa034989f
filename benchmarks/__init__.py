"""What krstore costs: scripts that measure and write JSON, of which `benchmarks.render` makes docs/results.md."""
