"""The native engine: graph rebuild, pruning and fake quantisation for Keras 3 models.

    model ──graph──▶ calls ──lower──▶ simple layers ──place──▶ ranges ──quantize──▶ QAT ──export──▶

Import its modules by name; nothing here is imported before it is used.
"""
