//! What the tile kernels ask for while they multiply, in the text of their assembly.
//!
//! A chunk of a kernel has four parts, between which it asks; what it asks with is one of these macros. They name the
//! kernel's operands `b` and `rest` (weights, and the second part of them), `at` and `step` (what the block's
//! [`Fetch`](crate::micro::Fetch) says, half of its step) and `ahead` (how far [`AHEAD`](super::amx::AHEAD) is). All have to be used, so that some
//! are named in comments.

/// Two lines a chunk that the block names.
macro_rules! fetch_named {
    ($what:tt, 0) => {
        "prefetcht1 byte ptr [{at}] # {ahead}\n"
    };
    ($what:tt, 2) => {
        "prefetcht1 byte ptr [{at} + {step}]\n"
    };
    ($what:tt, 3) => {
        "lea {at}, [{at} + 2 * {step}]\n"
    };
    ($what:tt, $part:literal) => {
        ""
    };
}
pub(super) use fetch_named;

/// Sixteen lines a chunk from the first one on that the block names.
macro_rules! fetch_next {
    ($what:tt, 3) => {
        concat!(
            fetch_next!(@ 3),
            "add {at}, 1024 # {step} {ahead}\n"
        )
    };
    ($what:tt, $part:literal) => {
        fetch_next!(@ $part)
    };
    (@ $part:literal) => {
        concat!(
            ".irp line, 0, 1, 2, 3\n",
            "prefetcht1 byte ptr [{at} + 256 * ",
            $part,
            " + 64 * \\line]\n",
            ".endr\n"
        )
    };
}
pub(super) use fetch_next;

/// All lines of a chunk of `b`, well ahead: of the chunk at `b` (0), of the one behind it (1), or of `b` and of `rest`.
macro_rules! fetch_all {
    (rest, $part:literal) => {
        concat!(fetch_all!(@ "{b}", 0, $part), fetch_all!(@ "{rest}", 0, $part))
    };
    ($chunk:literal, $part:literal) => {
        fetch_all!(@ "{b}", $chunk, $part)
    };
    (@ $b:literal, $chunk:literal, $part:literal) => {
        concat!(
            ".irp line, 0, 1, 2, 3, 4, 5, 6, 7\n",
            "prefetcht0 byte ptr [",
            $b,
            " + {ahead} + 2048 * ",
            $chunk,
            " + 512 * ",
            $part,
            " + 64 * \\line] # {at} {step}\n",
            ".endr\n"
        )
    };
}
pub(super) use fetch_all;
