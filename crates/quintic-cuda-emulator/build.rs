//! Compiles the kernels as C++ for this machine's CPU.

fn main() {
    let kernels = "../quintic-cuda/kernels";
    println!("cargo::rerun-if-changed={kernels}");
    println!("cargo::rerun-if-changed=src/emulated.h");
    println!("cargo::rerun-if-changed=src/emulated.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/emulated.cpp")
        .include("src")
        .include(kernels)
        // The kernels read numbers through pointers of other types, as CUDA programs do.
        .flag("-fno-strict-aliasing")
        // A device has no excess precision, and fuses only where it is told to.
        .flag("-ffp-contract=off")
        .flag_if_supported("-Wno-unknown-pragmas")
        .opt_level(2)
        .compile("quintic_cuda_emulated");
}
