"""Methods of post-training quantization: functions of a weight [in, out] and of what its inputs were, in numpy.

``statistics`` collects what is needed of the inputs; ``smooth``, ``shift`` and ``scale_search`` find scales and offsets of input
channels; ``grids`` finds the scales and zero points of groups; ``gptq`` corrects a weight and rounds it; ``choose`` puts the last
two together and never returns codes that are worse than rounding to nearest. Models, files and families are not known here:
``llmctl.infer.quantize`` applies the methods to a model.
"""
