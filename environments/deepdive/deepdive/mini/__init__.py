"""deepdive-mini: an invented world, its web of some 400 pages, and questions about it.

`world` invents the facts, `pages` writes them down, `questions` asks about them, `build` makes the two
shipped files of `data/` from all that, `corpus` serves them. Everything comes from one seed; a test builds it
again and compares, and another answers every question from the pages alone.
"""
