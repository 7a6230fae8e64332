"""Labels of a language model: proposed from `fit` text, chosen on `select` text, scored once on `test` text."""
