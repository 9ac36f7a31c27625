"""Directories that Hugging Face's `transformers` loads as `GPT2LMHeadModel`: write and read them, without `transformers`."""
