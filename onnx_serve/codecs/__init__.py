"""Wire formats: one module each, ``encode`` beside ``decode``; ``table`` lists them all.

A codec knows bytes and tensors, never HTTP, models or settings. It works on blocks, so that a body of any
size needs memory for a few blocks only:

* ``decode(body, media_type, signature, options)`` yields ``Document``s, each an iterator of blocks of named
  arrays. It is lazy: a document's blocks are consumed before the next document is asked for, and errors
  arise while iterating.
* ``encode(answers, sink, media_type, signature, options)`` writes the outputs of each document in turn.

Most formats hold exactly one document a body; JSON may hold several, and each is answered by its own layout.
"""
