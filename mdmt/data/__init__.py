"""Data: reader for tables with an image folder, store of preprocessed images, synthetic demo."""
