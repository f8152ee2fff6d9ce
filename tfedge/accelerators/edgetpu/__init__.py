"""Coral Edge TPU: what will run there, the compiler, and what is in a compiled file."""
