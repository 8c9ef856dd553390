"""The documentation site: what builds and checks it."""
