"""The calls of mPLUG-Owl3's model card; only the import line differs. python examples/official_owl3.py [MODEL]"""

import sys
from pathlib import Path

from PIL import Image

from longview import AutoConfig, AutoModel, AutoTokenizer

model_path = sys.argv[1] if len(sys.argv) > 1 else "demo"
config = AutoConfig.from_pretrained(model_path, trust_remote_code=True)  # accepted and ignored: no code is ever fetched
model = AutoModel.from_pretrained(model_path, config=config, attn_implementation="sdpa", device_map="auto").eval()
tokenizer = AutoTokenizer.from_pretrained(model_path)
processor = model.init_processor(tokenizer)

image = Image.open(Path(__file__).parent / "shapes.jpg").convert("RGB")
messages = [{"role": "user", "content": "<|image|>\nWhat colour is the circle?"}, {"role": "assistant", "content": ""}]
inputs = processor(messages, images=[image], videos=None)
inputs.to(model.device)
inputs.update({"tokenizer": tokenizer, "max_new_tokens": 100, "decode_text": True})
print(model.generate(**inputs)[0])
