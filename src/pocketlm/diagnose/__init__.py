"""What may be wrong with a pocket: one module for each question that the doctor asks."""
