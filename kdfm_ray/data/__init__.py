"""Images in: named data sets, folders, splits, and the endless streams of indices."""
