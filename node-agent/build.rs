//! Finds the compiled kernel programs, which the daemon embeds.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

/// Objects, and the variables that tell the daemon's source where they are.
const OBJECTS: [(&str, &str); 3] = [
    ("warren-node.o", "WARREN_EBPF_NODE"),
    ("warren-pod.o", "WARREN_EBPF_POD"),
    ("warren-splice.o", "WARREN_EBPF_SPLICE"),
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=WARREN_EBPF_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let directory = match env::var_os("WARREN_EBPF_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => workspace().join("target/ebpf"),
    };
    for (object, variable) in OBJECTS {
        let path = directory.join(object).with_extension("o");
        println!("cargo::rerun-if-changed={}", path.display());
        if !path.is_file() {
            println!("cargo::error={} is missing: run `cargo xtask build-ebpf`", path.display());
            return ExitCode::FAILURE;
        }
        println!("cargo::rustc-env={variable}={}", path.display());
    }
    ExitCode::SUCCESS
}

fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    package.parent().map(PathBuf::from).unwrap_or(package)
}
