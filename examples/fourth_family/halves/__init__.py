"""A toy family, written from the contract in `longview/models/base.py` alone: a picture is two tokens.

    pixels ── mean colour of the left and of the right half ── linear ──┐ (one picture: 2 embeddings)
    ids ── embeddings ────────────────────────────────────── merged ────┴── Qwen2 ── lm_head ── logits

It answers nothing of use, and shows what a family has to bring.
"""

from longview.models.halves.config import HalvesConfig as Config
from longview.models.halves.convert import official_config, recognises
from longview.models.halves.model import HalvesModel as Model
from longview.models.halves.processor import HalvesProcessor as Processor

__all__ = ["Config", "Model", "Processor", "official_config", "recognises"]
