"""A run becomes an artefact that has proved itself: a SavedModel, or an ONNX file."""
