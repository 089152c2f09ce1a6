"""From measurements of a device to its latency model, and to the errors that the model makes on other networks."""
