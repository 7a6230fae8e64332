"""One file for each framework: how it is told to train an architecture, each in an environment of its own.

`make peers` makes those of the peers, in `.peers/`; ours is the project's own. Nothing here but
`sae_atlas` imports the project: a peer sees rows in safetensors and hands back what it found, and
the same code (`benchmarks.world`) judges all of them.
"""
