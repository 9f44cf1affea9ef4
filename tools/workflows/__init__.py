"""The example workflows, made from short descriptions, so that a changed node changes them all: `python -m tools.refresh`.

`graph.py` turns a description into what a user would save, laid out from left to right; `parts.py` holds what the examples have
in common, `examples.py` the examples; `pictures.py` runs them on pico and makes the picture beside each.
"""
