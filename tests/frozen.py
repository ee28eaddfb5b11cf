"""Imported last by the fork server: its copies need not look for garbage among what all modules made.

Looking would also write to every page of it, which each copy would then have to copy.
"""

import gc

gc.collect()
gc.freeze()
