"""MGM (Mini-Gemini): a low-resolution tower gives queries, a high-resolution tower the keys and values.

CLIP encodes a small copy of the picture as a few hundred tokens; ConvNeXt encodes a large one. *Patch info mining* lets
each token gather, by attention, what the high-resolution features hold at its own place (`fusion.py`), so that small
print is legible at the price of a small picture. The tokens then take their place in the language sequence.

    pixels (large) ─┬─ made small ── CLIP ── queries ──┬── mined + queries ── projector ─┐ (one picture: P embeddings)
                    └─ ConvNeXt, four stages ── F ─────┘                                 │
    ids ── embeddings ──────────────────────────────────────────────────────── merged ───┴── language model ── logits

Paper: arXiv 2403.18814. Releases: 2B (Gemma), 7B and 13B (Vicuna), 8B (Llama 3), 8x7B (Mixtral), 34B (Yi); HD of all
but the smallest. It can also write prompts for a picture to be drawn: see `longview.plugins.draw`.
"""

from longview.models.mgm.config import MGMConfig as Config
from longview.models.mgm.convert import official_config, recognises
from longview.models.mgm.model import MGMModel as Model
from longview.models.mgm.processor import MGMProcessor as Processor

__all__ = ["Config", "Model", "Processor", "official_config", "recognises"]
