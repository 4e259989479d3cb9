"""Samples that are made: text and images → the arrays that a model takes.

    preparation  what a recipe asks for, as values: part of the key of the step `prepare`
    tables       rows of .jsonl, .csv and .parquet files
    text         what `text:` in a recipe means, found by reading headers and configs; nothing is tokenized
    pictures     what `images:` in a recipe means; no image is opened
    labels       labels as written → class numbers
    tokenize     texts → input_ids and their like (the step's work; needs tokenizers)
    preprocess_images  images → pixel_values by the model's own processor (the step's work; needs transformers, Pillow)
    rows         arrays → .npz, row by row

The made arrays lie in the store as one .npz; every later step reads them as it reads a recipe's own .npz.
"""
