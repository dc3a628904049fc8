"""An artefact answers: ONNX Runtime, and clients of TF Serving. Never imports TensorFlow."""
