"""Files: models, explainers and cache entries are read and written."""
