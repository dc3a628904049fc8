"""DeiT in TensorFlow and Keras 3: a student transformer that learns from a convolutional teacher.

The legend of every shape comment and docstring in this package:

    B  images in a batch          N  patches of an image, (S / P)²
    S  side of an image, pixels   T  tokens: class, distillation (if any), patches
    P  side of a patch, pixels    D  width of a token
    K  classes                    H  attention heads

Importing the package imports nothing else, so that a command can answer `--help` at once.
"""

__version__ = "0.1.0"
