//! The `quintic` command from outside: arguments in, exit code, text and files out.

mod compare;
mod encode;
mod encode_ids;
mod help;
mod inspect;
mod mistakes;
mod outputs;
mod pool;
mod support;
mod tokenize;
