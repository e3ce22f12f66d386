"""The entropy-coded model file: `pack` a compressed model into bytes, `unpack` them again.

Everything that is needed to rebuild the model is in the file: the network's structure, codes, codebooks, scales,
biases, activation parameters, IoSpec and the plan's formats. Float weights are not; what unpacks carries the values
that the codes stand for.
"""
