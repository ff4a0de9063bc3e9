"""Ovis2: a picture becomes tokens of a *visual vocabulary*, and is embedded as text is: by rows of a table.

A visual tokenizer gives every 2 × 2 patches a distribution over the visual words; the embedding is the mean of the
visual embedding table's rows, weighted by it (`fusion.py`). The embeddings then take their place in the language
sequence of a Qwen2, between indicators of where a picture, its columns and its rows begin and end. So a crop costs 256
positions of context, and nothing in the language model is changed.

    pixels ── AIMv2, no final norm ── 2 × 2 merged ── head ── softmax ── · table ─┐ (one crop: P embeddings)
    ids ── embeddings ───────────────────────────────────────────────── merged ───┴── Qwen2 ── lm_head ── logits

Paper: arXiv 2405.20797. Releases: Ovis2-1B, 2B, 4B, 8B, 16B, 34B; a release is its sizes.
"""

from longview.models.ovis2 import port
from longview.models.ovis2.config import OvisConfig as Config
from longview.models.ovis2.convert import official_config, recognises
from longview.models.ovis2.model import Ovis2Model as Model
from longview.models.ovis2.processor import Ovis2Processor as Processor

__all__ = ["Config", "Model", "Processor", "official_config", "port", "recognises"]
