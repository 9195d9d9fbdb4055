"""Sweeps: many runs that differ in a few settings, scheduled by Ray Tune, sharing what they can."""
