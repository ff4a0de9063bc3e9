"""What a model can be given beside its own eyes and words: `ocr` reads text to it, `draw` paints what it describes.

Each loads its library when it is first needed and says which extra brings it.
"""
