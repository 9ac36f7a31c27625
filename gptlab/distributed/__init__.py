"""One run on several processes that torchrun has started."""
