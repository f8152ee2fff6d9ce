"""What trains: `native` for Keras 3 models, `tfmot` for tf_keras models."""
