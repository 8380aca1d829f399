"""Data sets in the MIMIC layout: reading, images, the generated sample set, batches."""
