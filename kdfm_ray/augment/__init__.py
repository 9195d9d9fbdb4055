"""Weak and strong views: a uint8 batch in, a uint8 batch out, on the batch's own device."""
