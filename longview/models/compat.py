"""What the official calling conventions of several families share: a model that has its processor."""

from __future__ import annotations

from typing import Any

from longview.errors import RequestError


class OwnProcessor:
    """Mixin: the processor that a model's official calls use."""

    processor_class: Any
    config: Any
    name_or_path: str
    _processor: Any = None

    @property
    def processor(self) -> Any:
        """The processor of the folder that the model was opened from."""
        if self._processor is None:
            if not self.name_or_path:
                raise RequestError("a model made from a config alone has no tokenizer; give it one: init_processor(…)")
            self._processor = self.processor_class.from_pretrained(self.name_or_path, config=self.config)
        return self._processor

    def init_processor(self, tokenizer: Any) -> Any:
        """A processor around a tokenizer; the official calls use it from now on."""
        self._processor = self.processor_class(tokenizer, self.config)
        return self._processor
