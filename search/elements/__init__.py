"""What design elements really cost on a device: measured, with findings, and a space without what is dominated."""
