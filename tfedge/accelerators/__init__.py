"""From a `.tflite` file to the file of an accelerator, and what it will take before it is asked."""
