"""Benchmarks of class-incremental learning, and of what it keeps."""
