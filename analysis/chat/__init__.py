"""Questions to a language model, over the network or in this process: cached, retried, counted, priced, validated."""
