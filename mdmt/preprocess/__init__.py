"""Preprocessing: which part of an image the network sees, and how its values are scaled."""
