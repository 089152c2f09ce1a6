"""What a network does cost and reach: measured on devices, and trained on data."""
