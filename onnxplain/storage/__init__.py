"""What is read from and written to disk: model files, explainers, cache entries."""
