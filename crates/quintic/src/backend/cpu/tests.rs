//! Only what the kernels' own tests cannot see; whole models are compared in `tests/`.
