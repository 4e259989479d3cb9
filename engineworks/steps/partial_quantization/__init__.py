"""The accuracy cost of quantizing each part of a model, and the smallest list of nodes to exclude.

Parts are quantized one at a time, all others in fp32, and ranked by cost; then the costliest are excluded until the
recipe's limits hold. This is the partial quantization of Wu et al., *Integer Quantization for Deep Learning Inference:
Principles and Empirical Evaluation* (2020, arXiv:2004.09602, section 6.1). The reverse, quantizing everything but one
part, would cost a run of the whole model for each. It would also show a part's own noise only as the difference of two
large ones.

`groups`, `ranking`: pure. `trials`: models on samples.
"""
