"""The one training loop, what it saves, and evaluation. No Ray here."""
