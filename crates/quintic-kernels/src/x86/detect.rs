//! CPU features, and the permission to use tiles.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Isa;

/// Set by [`crate::testing::assume_tiles`].
pub(crate) static TILES_ASSUMED: AtomicBool = AtomicBool::new(false);

/// Whether `isa` can run here.
pub(crate) fn has(isa: Isa) -> bool {
    let avx2 = || {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    };
    let avx512 = || {
        avx2()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    };
    let avx512bf16 = || avx512() && is_x86_feature_detected!("avx512bf16");
    match isa {
        Isa::Portable => true,
        Isa::Avx2 => avx2(),
        Isa::Avx512 => avx512(),
        Isa::Avx512Bf16 => avx512bf16(),
        Isa::Amx => avx512bf16() && (TILES_ASSUMED.load(Ordering::Relaxed) || amx()),
    }
}

/// Whether Intel made this CPU.
pub(crate) fn is_intel() -> bool {
    let name = __cpuid(0);
    [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
}

/// Whether the CPU has AMX-TILE, AMX-BF16 and AMX-INT8, the system saves their state, and this process
/// may use them. The standard library cannot tell on a stable compiler.
fn amx() -> bool {
    static AMX: OnceLock<bool> = OnceLock::new();
    *AMX.get_or_init(|| {
        // Leaf 7 exists wherever AVX2 does, which the caller has checked.
        let features = __cpuid_count(7, 0).edx;
        let needed = 1 << 22 | 1 << 24 | 1 << 25;
        features & needed == needed && tiles_are_saved() && may_use_tiles()
    })
}

/// Whether the system saves tile configuration and tile data (XCR0 bits 17 and 18).
fn tiles_are_saved() -> bool {
    const TILES: u64 = 0b11 << 17;
    if !is_x86_feature_detected!("xsave") {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: XCR0 can be read wherever XSAVE is enabled.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: XSAVE was detected, and detection includes that the system enabled it.
    unsafe { xcr0() & TILES == TILES }
}

/// Asks Linux for permission to use tile data. The grant holds for all threads of the
/// process, also those that start later. It is refused, for instance, if a thread has an
/// alternate signal stack that is too small for the larger state; then there is no AMX.
///
/// Source: "Using XSTATE features in user space applications", Linux kernel documentation.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and changes nothing but the process's permission.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// Windows needs no permission.
#[cfg(target_os = "windows")]
fn may_use_tiles() -> bool {
    true
}

/// No x86 machine of another system is known to have AMX.
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
fn may_use_tiles() -> bool {
    false
}
