"""Every tolerance of the suite, absolute, in fp32."""

GOLDEN_EMBEDS = 5e-5  # features of pictures, against the authors' code
GOLDEN_ROUNDING = 6e-5  # mPLUG-Owl3's golden features, up to 23, are themselves up to 5.74e-5 off those of float64
FP32_ROUNDING = 1.2e-4  # ours in fp32 against ours in float64: as far off as theirs, on whichever processor
GOLDEN_LOGITS = 1e-3  # logits and hidden states of std ~5, against the authors' code
SAME_MATHS = 2e-4  # two ways through our own code to the same logits
EXACT_ATTENTION = 1e-5  # streaming softmax against a dense one, per layer
GOLDEN_TOKENS = 1e-5  # visual tokens, which are probabilities, against the authors' code
GOLDEN_MGM_LOGITS = 5e-5  # logits of MGM: two GELUs of Gemma differ by 2e-4, which a wider bound would not tell apart
GOLDEN_GRADIENTS = 2e-4  # gradients of a training step with norms up to 15, against the authors' code
