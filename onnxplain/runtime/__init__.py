"""Running models: sessions, providers, batches. Knows nothing about explanations."""
