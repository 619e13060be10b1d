"""Loading models and tokenizers, and choosing what of a model is trained."""
