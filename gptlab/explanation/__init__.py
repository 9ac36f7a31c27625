"""What a loss is made of: by position in the window, by token frequency, and memorization."""
