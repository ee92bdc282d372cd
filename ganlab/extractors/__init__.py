"""Networks that turn images into the features and class logits that metrics use."""
