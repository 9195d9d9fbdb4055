"""Networks that return logits and embeddings, and their moving average."""
