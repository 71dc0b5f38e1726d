//! For tests that emulate what the machine does not have.

/// Makes [`Isa::Amx`](crate::Isa::Amx) available wherever AVX512_BF16 is, whatever the machine
/// says of its tile unit.
///
/// # Safety
///
/// Tile instructions work in this process: an emulator has been installed, or they are real.
pub unsafe fn assume_tiles() {
    #[cfg(target_arch = "x86_64")]
    crate::x86::detect::TILES_ASSUMED.store(true, std::sync::atomic::Ordering::Relaxed);
}
