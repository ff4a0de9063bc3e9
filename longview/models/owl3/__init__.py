"""mPLUG-Owl3: text tokens attend to pictures inside a few transformer blocks; pictures take no place in the sequence.

The language model is Qwen2, the tower SigLIP without its last block. In each *hyper layer* the queries of text tokens
attend to keys and values of the pictures as well as of the text before them (`fusion.py`). A picture's keys carry the
position of its placeholder (MI-RoPE), and a token attends only to pictures whose placeholders stand before it. So a
picture of 729 patches costs five tokens of context, and attention in four layers.

    pixels ── SigLIP[:-1] ── vision2text_model ── features ─┐
    ids ── embeddings ── block ── hyper block ── block ── … ┴ … ── norm ── lm_head ── logits

Paper: arXiv 2408.04840. Releases: 240728 (a gate per token), 241014 (a gate vector), 241101 (one softmax, no gate).
"""

from longview.models.owl3.config import Owl3Config as Config
from longview.models.owl3.convert import official_config, recognises
from longview.models.owl3.model import Owl3Model as Model
from longview.models.owl3.processor import Owl3Processor as Processor

__all__ = ["Config", "Model", "Processor", "official_config", "recognises"]
