"""Class-incremental learning on one protocol: scenarios, learners, metrics, runs."""
