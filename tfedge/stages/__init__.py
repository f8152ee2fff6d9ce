"""Keras model in, Keras model out; one technique per file."""
