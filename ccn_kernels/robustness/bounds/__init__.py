"""What can be proved of a network's activations around an image; :mod:`..certified` makes radii of it.

regions (a box and a ball) and rows (a layer's linear part) → weighted, elementwise: layers → walk: a whole network.
`docs/certified.md` has the theorems that the comments name.
"""
