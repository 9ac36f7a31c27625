"""From a `.txt` file to training batches: text, tokens, windows."""
