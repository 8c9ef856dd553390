"""Photos to arrays, and attributions to pictures."""
