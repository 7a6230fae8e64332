"""How good a dictionary is: on held-out text, in its geometry, in the network; with intervals."""
