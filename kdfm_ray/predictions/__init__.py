"""Predictions for new images: tables, the images worth labeling next, and the command."""
