"""The GPT, what it weighs, and text from it."""
