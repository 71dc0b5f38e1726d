//! Compiles the kernels as C++ for this machine's CPU: into the crate, and into a library that
//! stands in for those of a GPU.

use std::path::Path;

fn main() {
    let kernels = "../quintic-cuda/kernels";
    println!("cargo::rerun-if-changed={kernels}");
    for source in ["emulated.h", "emulated.cpp", "driver.cpp"] {
        println!("cargo::rerun-if-changed=src/{source}");
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include("src")
        .include(kernels)
        // The kernels read numbers through pointers of other types, as CUDA programs do.
        .flag("-fno-strict-aliasing")
        // A device has no excess precision, and fuses only where it is told to.
        .flag("-ffp-contract=off")
        .flag_if_supported("-Wno-unknown-pragmas")
        .pic(true)
        .opt_level(2);

    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let folder = Path::new(&out).join("stand-in");
    std::fs::create_dir_all(&folder).expect("the build's folder can be written to");
    // One library under the names that are looked for.
    let names = [
        "libcuda.so.1",
        "libcuda.so",
        "libcublasLt.so.13",
        "libcublasLt.so",
    ];
    let mut command = build.get_compiler().to_command();
    command
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.join(names[0]))
        .args(["src/emulated.cpp", "src/driver.cpp"]);
    let status = command.status().expect("there is a C++ compiler");
    assert!(status.success(), "{command:?} ended with {status}");
    for name in &names[1..] {
        let link = folder.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(names[0], link).expect("the build's folder can be written to");
    }
    println!("cargo::rustc-env=QUINTIC_STAND_IN={}", folder.display());

    build
        .file("src/emulated.cpp")
        .compile("quintic_cuda_emulated");
}
