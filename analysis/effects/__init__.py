"""The second label of a latent: what it does to the network's next-token distribution, tested by intervention."""
