"""Networks that turn images into features and class logits: what the scores are computed from."""
