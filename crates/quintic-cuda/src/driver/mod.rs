//! A CUDA device through the driver's own libraries.
