"""Labels where the truth is known: rules planted in text, and a network whose features were written into it."""
