"""From a `.txt` to the windows of batch t: text → tokens → windows."""
