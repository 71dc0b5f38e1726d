//! One file a subcommand.

pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod encode;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod score;
pub(crate) mod tokenize;
pub(crate) mod verify;
