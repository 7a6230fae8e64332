"""What was found, for people and for other tools: pages and files that need none of this code."""
