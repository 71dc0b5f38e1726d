//! The `quintic` command from outside: arguments in, exit code, text and files out.
#![allow(clippy::unwrap_used, reason = "a failing unwrap here is the report")]

mod bench;
mod calibrate;
mod check;
mod compare;
mod convert;
mod encode;
mod encode_ids;
mod generate;
mod gguf;
mod help;
mod inspect;
mod mistakes;
mod outputs;
mod pool;
mod presets;
mod support;
mod tokenize;
mod verify;
