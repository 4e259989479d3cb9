"""What quantizing each part of a model costs in accuracy, and the smallest list of nodes that must stay out of it.

Parts are quantized one at a time, all others in fp32, and ranked by what that costs; then the costliest are left out
until the recipe's limits hold. This is the partial quantization of Wu et al., *Integer Quantization for Deep Learning
Inference: Principles and Empirical Evaluation* (2020, arXiv:2004.09602, section 6.1). The other way round, everything
but one part quantized, would cost a run of the whole model for each, and show a part's own noise only as the
difference of two large ones.

`groups`, `ranking`: pure. `prefix`, `trials`: models on samples.
"""
