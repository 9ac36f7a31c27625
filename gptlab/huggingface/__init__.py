"""Directories that Hugging Face's `transformers` loads as `GPT2LMHeadModel`; the library itself is not needed."""
