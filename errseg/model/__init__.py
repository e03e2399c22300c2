"""ERR-Seg (arXiv 2501.17642), one paper part per file:

err_seg.py                the whole model: `forward` reads as the paper's figure
image_encoder.py          CLIP's ConvNeXt, and EfficientNet-Lite for errseg-mini
text_encoder.py           CLIP's text tower, and MiniLM for errseg-mini
hierarchical_semantic.py  HSM: dense embeddings at strides 16 and 32        (v2: RRHC)
channel_reduction.py      CRM: the K classes that a picture needs           (v2: RRHC)
cost_embedding.py         cost maps, their embedding, and the guidance
context_fusion.py         ESCF: spatial, then class attention, shortened    (v2: RRCA)
decoder.py                guided upsampling to stride 4
layers.py                 small layers that several parts share
clip.py                   builds the open_clip model whose towers are used
"""
