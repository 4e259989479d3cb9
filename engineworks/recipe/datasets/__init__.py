"""Samples made from text and images: files → the arrays that a model takes.

    preparation  a recipe's request, as values: part of the cache key of the step `prepare`
    tables       rows of .jsonl, .csv and .parquet files
    text         the meaning of `text:` in a recipe, from headers and configs; nothing is tokenized
    pictures     the meaning of `images:` in a recipe; no image is opened
    labels       labels as written → class numbers
    tokenize     texts → input_ids and similar arrays (run by the step; needs tokenizers)
    preprocess_images  images → pixel_values by the model's own processor (run by the step; needs transformers, Pillow)
    rows         arrays → .npz, row by row

The store holds the arrays as one .npz; every later step reads them as it reads a recipe's own .npz.
"""
