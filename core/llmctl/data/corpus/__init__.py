"""Pretraining corpora: Megatron's indexed files, built, inspected, blended, and cut into samples."""
